"""A ragged multimodal data set, and the one place where columns are checked."""

import copy
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset


class Sample(NamedTuple):
    """One sample of a data set."""

    inputs: dict[str, Float[Tensor, "t f"]]
    """Its sequence by modality, of zero steps where the sample lacks the modality."""
    label: Shaped[Tensor, "..."] = torch.tensor(float("nan"))
    """A scalar, or one value per label; NaN, or -100 of classes, where it is missing."""
    id: str = ""
    """The name of the sample."""


@dataclass(frozen=True)
class _Packed:
    """All steps in one tensor, of which a sample is a view."""

    values: Float[Tensor, "steps f"]
    offsets: Int[Tensor, " bounds"]

    def __getitem__(self, index: int) -> Tensor:
        start, stop = self.offsets[index : index + 2].tolist()
        return self.values[start:stop]


@dataclass(frozen=True)
class _Part:
    """The sequences of some samples of another data set, which stay where they are."""

    steps: Any
    numbers: Int[Tensor, " n"]

    def __getitem__(self, index: int) -> Tensor:
        found: Tensor = self.steps[int(self.numbers[index])]
        return found


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
        inputs: modality name → one ``(t_i, f)`` array or tensor of numbers per sample, or one
            dense ``(n, t, f)`` array where all have one length. Zero steps: the modality is missing
            for that sample. Values beyond float32 become ±inf, NaN and ±inf stay.
        labels: ``(n,)`` or ``(n, k)``, finite or NaN; floating point is stored as float32, whole
            numbers as int64.
        ids: one name per sample, str, bytes or int, or its parts, which are joined with blanks;
            running numbers by default.

    Attributes:
        dims: modality name → feature width.
        labels: all labels, ``(n,)`` or ``(n, k)``.
        ids: all names.
        classes: names of the classes that labels number, as :func:`from_arrays` and
            :func:`from_sequences` keep them; None: they have none.
        overflows: modality name → number of finite entries that became ±inf in float32; without
            those of a subset whose data set has such entries, where it is not known.

    Raises:
        TypeError: an array that hides its values, such as a masked one.
        ValueError: no modality, no sample, features, labels or ids of another kind, or counts,
            widths or axes that disagree; the message names the sample.

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
        >>> data[1:]
        MultimodalDataset(1 samples, dims={'text': 4, 'audio': 5}, labels=float32 of shape (1,))
    """

    labels: Shaped[Tensor, "n ..."]
    ids: list[str]
    classes: list[str] | None = None
    dims: dict[str, int]
    overflows: dict[str, int]
    _offsets: dict[str, Int[Tensor, " bounds"]]
    # Modality name → what gives the sequence of a sample by its number.
    _steps: Mapping[str, Any]

    def __init__(
        self,
        inputs: Mapping[str, Iterable[Any]],
        labels: Sequence[Any] | NDArray[Any] | Tensor,
        ids: Iterable[Any] | None = None,
    ) -> None:
        arrays, steps = self._take(inputs, labels, ids), {}
        for name, offsets in self._offsets.items():
            values = np.empty((int(offsets[-1]), self.dims[name]), np.float32)
            with np.errstate(over="ignore"):
                np.concatenate(arrays[name], out=values, casting="same_kind")
            steps[name] = _Packed(torch.from_numpy(values), offsets)
        self._steps = steps

    @classmethod
    def _of_views(
        cls, inputs: Mapping[str, Iterable[Any]], labels: Any, ids: Iterable[Any] | None = None
    ) -> "MultimodalDataset":
        """Return the data set of arrays that stay where they are: to be written, not trained on."""
        data = cls.__new__(cls)
        data._steps = data._take(inputs, labels, ids)
        return data

    def _take(
        self, inputs: Mapping[str, Iterable[Any]], labels: Any, ids: Iterable[Any] | None
    ) -> dict[str, list[NDArray[Any]]]:
        """Check the arguments, set all attributes but the steps, and return the arrays of these."""
        if not inputs:
            raise ValueError("inputs must hold at least one modality, got none")
        self.labels = _labels(labels)
        count = len(self.labels)
        self.ids = [str(number) for number in range(count)] if ids is None else as_ids("ids", ids)
        if len(self.ids) != count:
            raise ValueError(f"ids must be one per label, {count}, got {len(self.ids)}")
        arrays = {
            name: _sequences(f"inputs[{name!r}]", list(column), self.ids)
            for name, column in inputs.items()
        }
        self.dims = {name: column[0].shape[1] for name, column in arrays.items()}
        self.overflows = {name: sum(map(_overflow, column)) for name, column in arrays.items()}
        self._offsets = {
            name: torch.from_numpy(np.cumsum([0, *map(len, column)], dtype=np.int64))
            for name, column in arrays.items()
        }
        return arrays

    @property
    def lengths(self) -> dict[str, Int[Tensor, " n"]]:
        """Modality name → number of steps of every sample."""
        return {name: offsets.diff() for name, offsets in self._offsets.items()}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def __repr__(self) -> str:
        labels = kind(self.labels.numpy())
        return f"{type(self).__name__}({len(self)} samples, dims={self.dims}, labels={labels})"

    @overload
    def __getitem__(self, index: SupportsIndex) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "MultimodalDataset": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Sample | MultimodalDataset":
        """Return one sample, or of a slice the subset; negative indices count from the end."""
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        try:
            number = operator.index(index)
        except TypeError:
            rule = "a whole number or a slice (subset takes several)"
            raise TypeError(f"index must be {rule}, got {index!r:.100}") from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"index must be in [-{len(self)}, {len(self)}), got {number}")
        number %= len(self)
        inputs = {name: steps[number] for name, steps in self._steps.items()}
        return Sample(inputs, self.labels[number], self.ids[number])

    def subset(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> "MultimodalDataset":
        """Return a data set of some of the samples, whose steps stay where they are.

        Args:
            indices: the samples, in any order and as often as wished, negative ones from the end;
                or one True or False for each sample.

        Returns:
            The subset; of a data set in a file, it reads from that file.

        Raises:
            IndexError: a number beyond the samples.
            ValueError: no sample, or indices that are no whole numbers.

        Example:
            >>> data = MultimodalDataset({"audio": torch.ones(3, 2, 4)}, labels=[1, 0, 2])
            >>> data.subset([2, 0]).ids, data.subset(data.labels > 0).ids
            (['2', '0'], ['0', '2'])
        """
        chosen = as_array("indices", indices)
        if chosen.dtype == bool and chosen.shape == (len(self),):
            chosen = chosen.nonzero()[0]
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or not chosen.size:
            rule = f"one or more whole numbers, or {len(self)} bools"
            raise ValueError(f"indices must be {rule}, got {kind(chosen)}")
        numbers = torch.from_numpy(chosen.astype(np.int64))
        wrong = numbers[(numbers < -len(self)) | (numbers >= len(self))]
        if len(wrong):
            raise IndexError(f"indices must be in [-{len(self)}, {len(self)}), got {wrong[0]}")
        numbers %= len(self)
        data = copy.copy(self)
        data.labels = self.labels[numbers]
        data.ids = [self.ids[number] for number in numbers.tolist()]
        data.overflows = {name: count for name, count in self.overflows.items() if not count}
        data._offsets = {
            name: F.pad(lengths[numbers].cumsum(0), (1, 0))
            for name, lengths in self.lengths.items()
        }
        data._steps = {name: _Part(steps, numbers) for name, steps in self._steps.items()}
        return data


def check_present(data: MultimodalDataset) -> None:
    """Raise if a sample has no step in any modality."""
    steps = torch.stack(list(data.lengths.values())).sum(dim=0)
    if not steps.all():
        missing = sample_name(int(steps.argmin()), data.ids)
        raise ValueError(
            f"inputs must have a step in every sample, got none in {missing}: leave it out"
        )


def sample_name(number: int, ids: Sequence[str]) -> str:
    """Return how messages name a sample: by its number and id."""
    return f"sample {number} ({ids[number]!r})"


def kind(value: Any) -> str:
    """Return how messages describe a value that is not what it should be."""
    array = isinstance(value, np.ndarray)
    return f"{value.dtype} of shape {value.shape}" if array else type(value).__name__


def as_array(name: str, x: Any) -> NDArray[Any]:
    """Return an array, tensor or nested list as an array, without a copy where it is one."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one: fill it, as with NaN")
    if isinstance(x, Tensor):
        # NumPy has no bfloat16.
        x = (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} must have entries of one length, got {kind(x)}") from None


def as_features(name: str, values: Any, *shapes: str) -> NDArray[Any]:
    """Return numbers as an array of one of these shapes, where only the first axis may be empty."""
    x = as_array(name, values)
    axes = [shape.count(",") + 1 for shape in shapes]
    if x.dtype.kind not in "fiu" or x.ndim not in axes or 0 in x.shape[1:]:
        rule = " or ".join(shapes)
        raise ValueError(f"{name} must be numbers of shape {rule}, f at least 1, got {kind(x)}")
    return x


def as_float32(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return an array as float32, ±inf where that cannot hold it."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def as_ids(name: str, values: Any) -> list[str]:
    """Return names as str: from str, bytes (UTF-8, else Latin-1), whole numbers, or parts."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list or array of names, got {kind(values)}")
    return [_id(f"{name}[{number}]", value) for number, value in enumerate(values)]


def _id(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        return " ".join(str(x) if isinstance(x, float) else _id(name, x) for x in value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin1")
    if not isinstance(value, (str, Integral)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a str, bytes or int, got {type(value).__name__}")
    return str(value)


def _labels(values: Any) -> Tensor:
    labels = as_array("labels", values)
    if labels.dtype.kind not in "iuf" or labels.ndim not in (1, 2) or labels.size == 0:
        raise ValueError(f"labels must be numbers of shape (n,) or (n, k), got {kind(labels)}")
    wrong = np.argwhere(np.isinf(as_float32(labels)))
    if len(wrong):
        raise ValueError(f"labels must be finite or NaN, got inf in sample {wrong[0][0]}")
    return torch.tensor(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64))


def _sequences(name: str, column: list[Any], ids: Sequence[str]) -> list[NDArray[Any]]:
    """Return one array of features per sample, all of one width."""
    if len(column) != len(ids):
        raise ValueError(f"{name} must hold one sequence per label, {len(ids)}, got {len(column)}")
    arrays: list[NDArray[Any]] = []
    for number, values in enumerate(column):
        place = f"{name}, {sample_name(number, ids)},"
        arrays.append(as_features(place, values, "(t, f)"))
        width, first = arrays[-1].shape[1], arrays[0].shape[1]
        if width != first:
            raise ValueError(f"{place} must have {first} features, as the first has, got {width}")
    return arrays


def _overflow(x: NDArray[Any]) -> int:
    """Return how many finite entries float32 cannot hold."""
    if x.dtype.kind != "f" or x.dtype.itemsize <= 4:
        return 0
    return int((np.isfinite(x) & ~np.isfinite(as_float32(x))).sum())
