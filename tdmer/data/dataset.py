"""A ragged multimodal data set and the collate that pads one batch at a time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset


class Sample(NamedTuple):
    """One sample of a data set.

    Attributes:
        inputs: modality name → its sequence; zero steps: the modality is missing for this sample.
        label: scalar, or one value per class for multi-label data.
        id: the name of the sample.
    """

    inputs: dict[str, Float[Tensor, "t f"]]
    label: Shaped[Tensor, "..."]
    id: str


class Batch(NamedTuple):
    """Samples padded on the right to the longest of the batch, per modality.

    Attributes:
        inputs: modality name → padded features, zeros in the pads.
        masks: modality name → True where a step is real.
        labels: the labels, stacked.
        ids: the names of the samples.
    """

    inputs: dict[str, Float[Tensor, "b t f"]]
    masks: dict[str, Bool[Tensor, "b t"]]
    labels: Shaped[Tensor, "b ..."]
    ids: list[str]


class MultimodalDataset(Dataset[Sample]):
    """Sequences of any lengths, several modalities per sample, stored without pads.

    Each modality is one float32 tensor of all its real steps, with offsets: memory grows with the
    data and not with the longest sequence, and worker processes receive a few tensors in place of
    many. Samples are views of that storage: copy before writing into them.

    Args:
        inputs: modality name → one ``(t_i, f)`` floating-point array or tensor per sample, or one
            dense ``(n, t, f)`` array where all have one length. Zero steps: the modality is missing
            for that sample. Values beyond float32 become ±inf, NaN and ±inf stay.
        labels: ``(n,)`` or ``(n, k)``; floating point is stored as float32, whole numbers as int64.
        ids: one name per sample; running numbers by default.

    Attributes:
        dims: modality name → feature width.
        labels: all labels, ``(n,)`` or ``(n, k)``.
        ids: all names.

    Raises:
        TypeError: features that are not floating point, labels that are not numbers, ids that are
            not text.
        ValueError: no modality, no sample, or counts, widths or axes that disagree.

    Example:
        >>> import numpy as np
        >>> text = [np.ones((3, 4), np.float32), np.ones((1, 4), np.float32)]
        >>> audio = [np.ones((2, 5), np.float32), np.ones((0, 5), np.float32)]
        >>> data = MultimodalDataset({"text": text, "audio": audio}, labels=[0.6, -1.0])
        >>> data.dims
        {'text': 4, 'audio': 5}
        >>> data.lengths["audio"]
        tensor([2, 0])
        >>> data[1].label, data[1].id
        (tensor(-1.), '1')
    """

    dims: dict[str, int]
    labels: Shaped[Tensor, "n ..."]
    ids: list[str]

    def __init__(
        self,
        inputs: Mapping[str, Iterable[Any]],
        labels: Sequence[Any] | NDArray[Any] | Tensor,
        ids: Iterable[str] | None = None,
    ) -> None:
        if not inputs:
            raise ValueError("inputs must hold at least one modality, got none")
        self.labels = _labels(labels)
        count = len(self.labels)
        self.ids = [str(number) for number in range(count)] if ids is None else _ids(ids)
        if len(self.ids) != count:
            raise ValueError(f"ids must be one per label, {count}, got {len(self.ids)}")
        self.dims = {}
        self._values: dict[str, Tensor] = {}
        self._offsets: dict[str, Tensor] = {}
        for name, sequences in inputs.items():
            values, offsets = _flatten(f"inputs[{name!r}]", sequences)
            if len(offsets) != count + 1:
                raise ValueError(
                    f"inputs[{name!r}] must hold one sequence per label, {count}, "
                    f"got {len(offsets) - 1}"
                )
            self.dims[name] = values.shape[1]
            self._values[name] = values
            self._offsets[name] = offsets

    @property
    def lengths(self) -> dict[str, Int[Tensor, " n"]]:
        """Modality name → number of steps of every sample."""
        return {name: offsets.diff() for name, offsets in self._offsets.items()}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; negative indices count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be in [-{len(self)}, {len(self)}), got {index}")
        index %= len(self)
        inputs = {}
        for name, offsets in self._offsets.items():
            start, stop = offsets[index : index + 2].tolist()
            inputs[name] = self._values[name][start:stop]
        return Sample(inputs, self.labels[index], self.ids[index])


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples on the right with zeros to the longest of the batch, per modality.

    A modality that no sample of the batch has keeps one padded step, so that its shape stays
    ``(b, 1, f)`` with a mask of False.

    Args:
        samples: at least one, all with the same modalities.

    Returns:
        The inputs, masks (True where a step is real), labels and ids.

    Raises:
        ValueError: no samples, or samples whose modalities differ.

    Example:
        >>> one = Sample({"text": torch.ones(1, 2)}, torch.tensor(0.5), "one")
        >>> two = Sample({"text": torch.ones(3, 2)}, torch.tensor(-1.0), "two")
        >>> batch = collate([one, two])
        >>> batch.inputs["text"].shape
        torch.Size([2, 3, 2])
        >>> batch.masks["text"]
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    if not samples:
        raise ValueError("samples must hold at least one sample, got none")
    names = list(samples[0].inputs)
    for sample in samples:
        if sample.inputs.keys() != samples[0].inputs.keys():
            raise ValueError(
                f"samples must all have the modalities {names}, "
                f"got {list(sample.inputs)} in sample {sample.id!r}"
            )
    inputs, masks = {}, {}
    for name in names:
        sequences = [sample.inputs[name] for sample in samples]
        longest = max(1, *(len(sequence) for sequence in sequences))
        padded = sequences[0].new_zeros(len(samples), longest, sequences[0].shape[1])
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool, device=padded.device)
        for row, sequence in enumerate(sequences):
            padded[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = True
        inputs[name], masks[name] = padded, mask
    labels = torch.stack([sample.label for sample in samples])
    return Batch(inputs, masks, labels, [sample.id for sample in samples])


def describe(datasets: Mapping[str, MultimodalDataset]) -> str:
    """Report what data sets hold: samples, labels, widths, lengths, damage, leaks.

    Args:
        datasets: split name → data set, as a reader returns them.

    Returns:
        One line per split, one per modality in it, and one per two splits with ids in common.

    Example:
        >>> import numpy as np
        >>> audio = np.array([[[1.0], [np.nan]], [[2.0], [3.0]]], np.float32)
        >>> print(describe({"train": MultimodalDataset({"audio": audio}, labels=[-1.0, 2.0])}))
        train: 2 samples, labels -1 to 2, 0 missing
          audio: 1 features, 2/2/2 steps (min/median/max), missing in 0, 1 entries not finite
    """
    lines = []
    for split, data in datasets.items():
        # The two ways to say that a label is missing: NaN, and -100 for a class.
        missing = data.labels.isnan() | (data.labels == -100)
        known = data.labels[~missing]
        span = f"{known.min():g} to {known.max():g}, " if len(known) else ""
        lines.append(f"{split}: {len(data)} samples, labels {span}{int(missing.sum())} missing")
        lengths = data.lengths
        for name, values in data._values.items():
            steps = lengths[name]
            lines.append(
                f"  {name}: {data.dims[name]} features, "
                f"{steps.min()}/{steps.median()}/{steps.max()} steps (min/median/max), "
                f"missing in {int((steps == 0).sum())}, "
                f"{int((~values.isfinite()).sum())} entries not finite"
            )
    splits = list(datasets)
    for place, one in enumerate(splits):
        for other in splits[place + 1 :]:
            shared = set(datasets[one].ids) & set(datasets[other].ids)
            if shared:
                lines.append(f"{one} and {other} share {len(shared)} ids: {min(shared)!r} is one")
    return "\n".join(lines)


def _labels(labels: Sequence[Any] | NDArray[Any] | Tensor) -> Tensor:
    array = labels.detach().cpu() if isinstance(labels, Tensor) else np.asarray(labels)
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "iuf":
            raise TypeError(f"labels must be numbers, got dtype {array.dtype}")
        array = torch.tensor(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
    if array.dtype == torch.bool or array.is_complex():
        raise TypeError(f"labels must be numbers, got dtype {array.dtype}")
    if array.ndim not in (1, 2) or len(array) == 0:
        raise ValueError(
            f"labels must have shape (n,) or (n, k) with n at least 1, got {tuple(array.shape)}"
        )
    return array.to(torch.float32 if array.is_floating_point() else torch.int64, copy=True)


def _ids(ids: Iterable[str]) -> list[str]:
    ids = list(ids)
    for number, name in enumerate(ids):
        if not isinstance(name, str):
            raise TypeError(f"ids[{number}] must be a str, got {type(name).__name__}")
    return [str(name) for name in ids]


def _flatten(name: str, sequences: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Return all steps, ``(steps, f)`` float32, and where each sequence begins and ends."""
    arrays = [_array(f"{name}[{number}]", x) for number, x in enumerate(sequences)]
    if not arrays:
        raise ValueError(f"{name} must hold at least one sequence, got none")
    width = arrays[0].shape[1]
    for number, array in enumerate(arrays):
        if array.shape[1] != width or width == 0:
            raise ValueError(
                f"{name}[{number}] must have {width or 'at least 1'} features like the first "
                f"sequence, got shape {array.shape}"
            )
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    values = np.empty((offsets[-1], width), np.float32)
    # Values beyond float32 become ±inf, which the model's normalisation counts and replaces.
    with np.errstate(over="ignore"):
        for start, array in zip(offsets[:-1], arrays, strict=True):
            values[start : start + len(array)] = array
    return torch.from_numpy(values), torch.from_numpy(offsets)


def _array(name: str, x: Any) -> NDArray[Any]:
    # NumPy has no bfloat16.
    array = x.detach().float().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype.kind != "f" or (isinstance(x, Tensor) and not x.is_floating_point()):
        got = x.dtype if isinstance(x, Tensor) else array.dtype
        raise TypeError(f"{name} must be floating point, got {got}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 axes, time and features, got shape {array.shape}")
    return array
