"""A ragged multimodal data set and the collate that pads one batch at a time."""

import hashlib
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tdmer._checks import check_real, per_modality


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


class Layout(NamedTuple):
    """All of a data set but its steps.

    Attributes:
        labels: ``(n,)`` or ``(n, k)``, float32 or int64.
        ids: one per sample.
        dims: modality name → feature width.
        offsets: modality name → where the steps of each sample begin and, last, where all end.
        overflows: modality name → number of finite entries that float32 cannot hold.
    """

    labels: Shaped[Tensor, "n ..."]
    ids: list[str]
    dims: dict[str, int]
    offsets: dict[str, Int[Tensor, " n+1"]]
    overflows: dict[str, int]


@runtime_checkable
class Steps(Protocol):
    """All steps of one modality, of which a slice is a ``(t, f)`` float32 tensor."""

    def __getitem__(self, steps: slice, /) -> Tensor: ...


class MultimodalDataset(Dataset[Sample]):
    """Sequences of any lengths, several modalities per sample, stored without pads.

    Each modality is one float32 tensor of all its real steps, with offsets: memory grows with the
    data and not with the longest sequence, and worker processes receive a few tensors in place of
    many. Samples are views of that storage: copy before writing into them. A data set that
    :func:`open_store` returns reads every sample from its file instead.

    The readers refuse a sample without a step in any modality. Here it is allowed, since some of
    a file's modalities may be left out: the model predicts it from nothing, and :func:`describe`
    names it.

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
        overflows: modality name → number of finite entries that became ±inf in float32.

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

    def __init__(
        self,
        inputs: Mapping[str, Iterable[Any]],
        labels: Sequence[Any] | NDArray[Any] | Tensor,
        ids: Iterable[str] | None = None,
    ) -> None:
        layout, sequences = lay_out(inputs, labels, ids)
        values: dict[str, Steps] = {}
        for name, width in layout.dims.items():
            steps = np.empty((int(layout.offsets[name][-1]), width), np.float32)
            starts = layout.offsets[name][:-1].tolist()
            for start, sequence in zip(starts, sequences[name], strict=True):
                steps[start : start + len(sequence)] = as_float32(sequence)
            values[name] = torch.from_numpy(steps)
        self._assemble(layout, values)

    @classmethod
    def _of(cls, layout: Layout, values: Mapping[str, Steps]) -> "MultimodalDataset":
        """Return the data set whose steps lie elsewhere."""
        data = cls.__new__(cls)
        data._assemble(layout, values)
        return data

    def _assemble(self, layout: Layout, values: Mapping[str, Steps]) -> None:
        self.labels, self.ids, self.dims, self._offsets, self.overflows = layout
        self._values = dict(values)

    @property
    def lengths(self) -> dict[str, Int[Tensor, " n"]]:
        """Modality name → number of steps of every sample."""
        return {name: offsets.diff() for name, offsets in self._offsets.items()}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; negative indices count from the end."""
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(
                f"index must be a whole number, got {index!r:.100}: torch.utils.data.Subset takes "
                "several, as in Subset(data, range(2, 5))"
            ) from None
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be in [-{len(self)}, {len(self)}), got {index}")
        index %= len(self)
        inputs = {}
        for name, offsets in self._offsets.items():
            start, stop = offsets[index : index + 2].tolist()
            inputs[name] = self._values[name][start:stop]
        return Sample(inputs, self.labels[index], self.ids[index])


def collate(
    samples: Sequence[Sample], *, modality_dropout: float | Mapping[str, float] = 0.0
) -> Batch:
    """Pad samples on the right with zeros to the longest of the batch, per modality.

    A modality that no sample of the batch has keeps one padded step, so that its shape stays
    ``(b, 1, f)`` with a mask of False.

    Modality dropout trains a model for inputs that lack modalities. Every modality of every sample
    is dropped independently: it becomes a missing one. Where this would drop all that a sample has,
    one of them stays, each as likely as the others. With a data loader:
    ``collate_fn=functools.partial(collate, modality_dropout=0.2)``, in training only.

    Args:
        samples: at least one, all with the same modalities.
        modality_dropout: probability in [0, 1) that a modality is dropped, one for all or by name.
            Drawn from PyTorch's generator, which data loaders seed per worker; 0 draws nothing.

    Returns:
        The inputs, masks (True where a step is real), labels and ids.

    Raises:
        TypeError: a probability is not a number.
        ValueError: no samples, samples whose modalities differ, or a probability out of range or
            not for each modality.

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
    rates = per_modality("modality_dropout", modality_dropout, names)
    for name, rate in rates.items():
        check_real(f"modality_dropout of {name!r}", rate, below=1.0)
    if any(rates.values()):
        samples = _drop(samples, rates)
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
    """Report what data sets hold: samples, labels, widths, lengths, damage, duplicates, leaks.

    Every sample is read once, and no more than one is held.

    Args:
        datasets: split name → data set, as a reader returns them.

    Returns:
        One line per split and one per modality in it. What is wrong follows where it is found:
        missing modalities and labels; NaN and ±inf entries, among these the finite ones beyond
        float32; features that are 0 in every step; ids that occur twice; samples of equal content
        under different ids; the same between splits (leakage).

    Example:
        >>> import numpy as np
        >>> audio = np.array([[[1.0], [np.nan]], [[2.0], [3.0]]], np.float32)
        >>> print(describe({"train": MultimodalDataset({"audio": audio}, labels=[-1.0, 2.0])}))
        train: 2 samples, labels -1 to 2 (1 negative, 0 zero, 1 positive)
          audio: 1 features, 2/2/2 steps (min/median/max), 1 NaN
    """
    lines = []
    contents: dict[str, dict[bytes, set[str]]] = {}
    for split, data in datasets.items():
        lines.append(f"{split}: {len(data)} samples, {_describe_labels(data.labels)}")
        described, contents[split] = _describe_steps(data)
        lines += described
        twice = [name for name, count in Counter(data.ids).items() if count > 1]
        if twice:
            lines.append(f"  {len(twice)} ids occur more than once: {min(twice)!r} is one")
        steps = torch.stack(list(data.lengths.values())).sum(dim=0)
        empty = (steps == 0).nonzero().flatten().tolist()
        if empty:
            lines.append(f"  {len(empty)} samples have no modality: {data.ids[empty[0]]!r} is one")
        equal = [sorted(ids) for ids in contents[split].values() if len(ids) > 1]
        if equal:
            one, two = min(equal)[:2]
            lines.append(
                f"  {sum(map(len, equal))} samples equal others under another id: "
                f"{one!r} and {two!r} are two"
            )
    splits = list(datasets)
    for place, one in enumerate(splits):
        for other in splits[place + 1 :]:
            shared = set(datasets[one].ids) & set(datasets[other].ids)
            if shared:
                lines.append(f"{one} and {other} share {len(shared)} ids: {min(shared)!r} is one")
            pairs = [
                (min(ids), min(contents[other][content] - ids))
                for content, ids in contents[one].items()
                if contents[other].get(content, ids) - ids
            ]
            if pairs:
                lines.append(
                    f"{one} and {other} share {len(pairs)} samples under different ids: "
                    f"{min(pairs)[0]!r} and {min(pairs)[1]!r} are two"
                )
    return "\n".join(lines)


def _describe_labels(labels: Tensor) -> str:
    # The two ways to say that a label is missing: NaN, and -100 for a class.
    missing = labels.isnan() | (labels == -100)
    known = labels[~missing]
    parts = []
    if len(known):
        span = f"{known.min():g} to {known.max():g}"
        if labels.ndim == 1 and labels.is_floating_point() and known.min() < 0:
            signs = [int((known.sign() == sign).sum()) for sign in (-1, 0, 1)]
            span += " ({} negative, {} zero, {} positive)".format(*signs)
        elif labels.ndim == 1 and not labels.is_floating_point():
            counts = Counter(known.tolist())
            if len(counts) <= 10:
                span += f" ({', '.join(f'{label}: {counts[label]}' for label in sorted(counts))})"
        parts.append(span)
    if missing.any():
        parts.append(f"{int(missing.sum())} missing")
    return "labels " + ", ".join(parts)


def _describe_steps(data: MultimodalDataset) -> tuple[list[str], dict[bytes, set[str]]]:
    """Return one line per modality, and hash of the content → ids of the samples that have it."""
    counts = {name: Counter[str]() for name in data.dims}
    zero = {name: np.ones(width, bool) for name, width in data.dims.items()}
    contents: dict[bytes, set[str]] = {}
    for index in range(len(data)):
        sample = data[index]
        digest = hashlib.blake2b(digest_size=16)
        for name, x in sample.inputs.items():
            values = x.numpy()
            digest.update(len(values).to_bytes(8, "little"))
            digest.update(values.data)
            zero[name] &= ~values.any(axis=0)
            if not np.isfinite(values).all():
                counts[name]["nan"] += int(np.isnan(values).sum())
                counts[name]["infinite"] += int(np.isinf(values).sum())
        if any(map(len, sample.inputs.values())):
            contents.setdefault(digest.digest(), set()).add(sample.id)
    lines = []
    for name, steps in data.lengths.items():
        found = {
            "missing in {}": int((steps == 0).sum()),
            "{} NaN": counts[name]["nan"],
            "{} infinite": counts[name]["infinite"],
            "{} of them beyond float32": data.overflows[name],
            "{} features always 0": int(zero[name].sum()),
        }
        lines.append(
            f"  {name}: {data.dims[name]} features, "
            f"{steps.min()}/{steps.median()}/{steps.max()} steps (min/median/max)"
            + "".join(", " + text.format(count) for text, count in found.items() if count)
        )
    return lines, contents


def lay_out(
    inputs: Mapping[str, Iterable[Any]],
    labels: Sequence[Any] | NDArray[Any] | Tensor,
    ids: Iterable[str] | None,
) -> tuple[Layout, dict[str, list[NDArray[Any] | Tensor]]]:
    """Check the arguments of :class:`MultimodalDataset`; return them with no step copied."""
    if not inputs:
        raise ValueError("inputs must hold at least one modality, got none")
    labels = _labels(labels)
    count = len(labels)
    ids = [str(number) for number in range(count)] if ids is None else _ids(ids)
    if len(ids) != count:
        raise ValueError(f"ids must be one per label, {count}, got {len(ids)}")
    layout = Layout(labels, ids, {}, {}, {})
    arrays = {}
    for name, sequences in inputs.items():
        arrays[name] = _sequences(f"inputs[{name!r}]", sequences)
        if len(arrays[name]) != count:
            raise ValueError(
                f"inputs[{name!r}] must hold one sequence per label, {count}, "
                f"got {len(arrays[name])}"
            )
        layout.dims[name] = arrays[name][0].shape[1]
        ends = np.cumsum([0, *map(len, arrays[name])], dtype=np.int64)
        layout.offsets[name] = torch.from_numpy(ends)
        layout.overflows[name] = sum(map(_overflow, arrays[name]))
    return layout, arrays


def as_float32(x: NDArray[Any] | Tensor) -> NDArray[np.float32]:
    """Return a sequence as float32, ±inf where that cannot hold it."""
    # NumPy has no bfloat16.
    if isinstance(x, Tensor):
        x = x.float().numpy()
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


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


def _sequences(name: str, sequences: Iterable[Any]) -> list[NDArray[Any] | Tensor]:
    """Return one floating-point array or tensor of 2 axes per sample, all of one width."""
    arrays = [_sequence(f"{name}[{number}]", x) for number, x in enumerate(sequences)]
    if not arrays:
        raise ValueError(f"{name} must hold at least one sequence, got none")
    width = arrays[0].shape[1]
    for number, array in enumerate(arrays):
        if array.shape[1] != width or width == 0:
            raise ValueError(
                f"{name}[{number}] must have {width or 'at least 1'} features like the first "
                f"sequence, got shape {tuple(array.shape)}"
            )
    return arrays


def _sequence(name: str, x: Any) -> NDArray[Any] | Tensor:
    array = x.detach().cpu() if isinstance(x, Tensor) else np.asarray(x)
    real = array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"
    if not real:
        raise TypeError(f"{name} must be floating point, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(
            f"{name} must have 2 axes, time and features, got shape {tuple(array.shape)}"
        )
    return array


def _overflow(x: NDArray[Any] | Tensor) -> int:
    """Return how many finite entries float32 cannot hold."""
    if x.dtype.itemsize <= 4:
        return 0
    finite = np.isfinite(np.asarray(x))
    return int(np.isinf(as_float32(x)[finite]).sum())


def _drop(samples: Sequence[Sample], rates: Mapping[str, float]) -> list[Sample]:
    """Return the samples with modalities dropped at random, never all that a sample has."""
    rate = torch.tensor([rates[name] for name in samples[0].inputs])
    present = torch.tensor([[len(s.inputs[name]) > 0 for name in rates] for s in samples])
    # Below 1 with the probability of a drop, and then uniform: the highest may as well stay.
    score = (torch.rand(present.shape) / rate).masked_fill(rate == 0, float("inf"))
    highest = score.masked_fill(~present, 0.0).amax(dim=1, keepdim=True)
    dropped = ((score < 1) & (score < highest)).tolist()
    return [
        sample._replace(
            inputs={
                name: sample.inputs[name][:0] if drop else sample.inputs[name]
                for name, drop in zip(rates, row, strict=True)
            }
        )
        for sample, row in zip(samples, dropped, strict=True)
    ]
