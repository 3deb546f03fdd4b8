"""Data sets from arrays and columns of one's own."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tdmer._checks import check_names
from tdmer.data.dataset import MultimodalDataset
from tdmer.data.padding import (
    cut,
    find_extent,
    sample_name,
    spans_from_lengths,
    spans_from_mask,
    spans_from_zeros,
)
from tdmer.data.reading import (
    as_floating,
    check_present,
    kind,
    read_ids,
    read_labels,
    read_lengths,
    read_mask,
    read_padded,
    to_numpy,
)


def from_arrays(
    inputs: Mapping[str, Any],
    labels: Any,
    *,
    ids: Iterable[Any] | None = None,
    lengths: Mapping[str, Any] | None = None,
    masks: Mapping[str, Any] | None = None,
) -> MultimodalDataset:
    """Make a data set of padded arrays, without their pads.

    For every modality its real steps are those of its mask; else its length says how many there
    are, on the side where nothing but zeros lies outside; else steps of zeros at one end are pads.
    The end is found from the whole array: that at which more than twice as many samples have zeros
    as at the other, so that zeros within a sequence, or at its other end, are kept. A sample of
    zeros only lacks the modality. NaN and ±inf are values, not pads.

    Args:
        inputs: modality name → ``(n, t, f)`` array or tensor of numbers; whole numbers up to 2²⁴.
        labels: ``(n,)`` or ``(n, k)`` numbers, of any kind of column; None and NaN: missing.
        ids: one name per sample, str, bytes or int; running numbers by default.
        lengths: modality name → ``(n,)`` whole numbers. Any modalities may be left out.
        masks: modality name → ``(n, t)``, True or 1 where a step is real, without holes. What lies
            outside is dropped whatever it holds. Any modalities may be left out.

    Returns:
        The data set.

    Raises:
        TypeError: an argument that is no mapping or column.
        ValueError: counts, shapes, lengths, masks or labels that are wrong, a side that cannot be
            told, or a sample without a real step in any modality; the message names the sample.

    Example:
        >>> x = np.zeros((2, 3, 1))
        >>> x[0, 2:] = x[1, 1:] = 1.0
        >>> from_arrays({"text": x}, [0.6, -1.0]).lengths["text"]
        tensor([1, 2])
        >>> from_arrays({"text": x}, [0.6, -1.0], lengths={"text": [2, 3]}).lengths["text"]
        tensor([2, 3])
    """
    lengths, masks = lengths if lengths is not None else {}, masks if masks is not None else {}
    for name, value in (("inputs", inputs), ("lengths", lengths), ("masks", masks)):
        _check_mapping(name, value, inputs)
    check_names("inputs", list(inputs))
    target, names = _labels_and_ids(labels, ids)
    sequences = {}
    for modality, value in inputs.items():
        name = f"inputs[{modality!r}]"
        x = read_padded(name, to_numpy(name, value), len(names))
        if modality in lengths and modality in masks:
            raise ValueError(f"{name} must have lengths or a mask, got both")
        if modality in masks:
            mask_name = f"masks[{modality!r}]"
            mask = read_mask(mask_name, _array(mask_name, masks[modality]), x.shape[:2])
            spans = spans_from_mask(mask_name, mask, names)
        elif modality in lengths:
            lengths_name = f"lengths[{modality!r}]"
            given = _array(lengths_name, lengths[modality])
            steps = read_lengths(lengths_name, given, len(names))
            spans = spans_from_lengths(name, steps, find_extent(x), x.shape[1], names)
        else:
            spans = spans_from_zeros(name, find_extent(x), x.shape[1])
        sequences[modality] = cut(x, spans)
    check_present("inputs", sequences, names)
    return MultimodalDataset(sequences, target, names)


def from_sequences(
    inputs: Mapping[str, Iterable[Any]], labels: Any, *, ids: Iterable[Any] | None = None
) -> MultimodalDataset:
    """Make a data set of columns of ragged sequences.

    A column is anything that yields one item per sample: a list, a column of a pandas frame or a
    Hugging Face data set, an Arrow array. An item is ``(t_i, f)`` numbers, as an array, a tensor,
    nested lists or an array of arrays; None, NaN or no steps: the sample lacks the modality. Zeros
    are values, whole numbers are read up to 2²⁴.

    Args:
        inputs: modality name → column of sequences.
        labels: ``(n,)`` or ``(n, k)`` numbers, of any kind of column; None and NaN: missing.
        ids: one name per sample, str, bytes or int; running numbers by default.

    Returns:
        The data set.

    Raises:
        TypeError: an argument that is no mapping or column.
        ValueError: an item that is no sequence, counts or widths that disagree, labels that are no
            numbers, or a sample without a step in any modality; the message names the sample.

    Example:
        >>> audio = [[[0.1, 0.2]], None]
        >>> text = [np.ones((3, 4)), np.ones((2, 4))]
        >>> data = from_sequences({"audio": audio, "text": text}, [0.6, None], ids=["a", "b"])
        >>> data.lengths["audio"], data.labels
        (tensor([1, 0]), tensor([0.6000,    nan]))
    """
    _check_mapping("inputs", inputs, inputs)
    check_names("inputs", list(inputs))
    target, names = _labels_and_ids(labels, ids)
    sequences = {
        modality: _ragged_column(f"inputs[{modality!r}]", column, names)
        for modality, column in inputs.items()
    }
    check_present("inputs", sequences, names)
    return MultimodalDataset(sequences, target, names)


def _check_mapping(name: str, value: Any, inputs: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must map modality names to arrays or columns, got {type(value).__name__}"
        )
    for modality in value:
        if modality not in inputs:
            raise ValueError(f"{name} must name modalities of {list(inputs)}, got {modality!r}")


def _labels_and_ids(labels: Any, ids: Iterable[Any] | None) -> tuple[NDArray[Any], list[str]]:
    target = _array("labels", labels)
    if target.dtype.kind == "O":
        # Columns of objects: None, or pandas' NA, among the numbers, or one list per sample.
        target = _stacked("labels", [np.nan if _is_missing(x) else x for x in target.tolist()])
    if ids is None:
        names = [str(number) for number in range(len(target) if target.ndim else 0)]
    else:
        names = read_ids("ids", _entries("ids", ids))
    return read_labels("labels", target, names), names


def _ragged_column(name: str, column: Iterable[Any], ids: Sequence[str]) -> list[NDArray[Any]]:
    items = _entries(name, column)
    if len(items) != len(ids):
        raise ValueError(f"{name} must hold one item per sample, {len(ids)}, got {len(items)}")
    found = [
        _sequence(f"{name}, {sample_name(number, ids)},", item) for number, item in enumerate(items)
    ]
    known = [(number, x) for number, x in enumerate(found) if x is not None]
    if not known:
        raise ValueError(f"{name} must have steps in at least one sample, got none; leave it out")
    width = known[0][1].shape[1]
    for number, x in known:
        if x.shape[1] != width:
            raise ValueError(
                f"{name}, {sample_name(number, ids)}, must have {width} features, as "
                f"{sample_name(known[0][0], ids)}, got {x.shape[1]}"
            )
    return [np.empty((0, width), np.float32) if x is None else x for x in found]


def _sequence(name: str, item: Any) -> NDArray[Any] | None:
    """Return one item of a column as ``(t, f)`` floating point, None where it is missing."""
    if _is_missing(item):
        return None
    try:
        x = np.asarray(to_numpy(name, item))
        if x.dtype.kind == "O" and x.ndim == 1 and len(x):
            # What pandas makes of nested lists in a file.
            x = np.stack([np.asarray(step) for step in x])
    except ValueError:
        raise ValueError(f"{name} must be steps of one width, got a ragged {kind(item)}") from None
    if x.shape == (0,):
        return None
    if x.dtype.kind not in "fiu" or x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must be (t, f) numbers, f at least 1, got {kind(x)}")
    return as_floating(name, x)


def _entries(name: str, column: Any) -> list[Any]:
    scalar = isinstance(column, (np.ndarray, Tensor)) and column.ndim == 0
    if scalar or isinstance(column, (str, bytes, Mapping)) or not isinstance(column, Iterable):
        raise TypeError(f"{name} must be a column, such as a list, got {type(column).__name__}")
    # Scalars of Arrow know how to become plain.
    entries = (x.as_py() if hasattr(x, "as_py") else x for x in column)
    return [x.item() if isinstance(x, Tensor) and x.ndim == 0 else x for x in entries]


def _array(name: str, values: Any) -> NDArray[Any]:
    """Return a column of numbers as an array."""
    if isinstance(values, Tensor) or hasattr(values, "__array__"):
        return np.asarray(to_numpy(name, values))
    return _stacked(name, _entries(name, values))


def _stacked(name: str, entries: list[Any]) -> NDArray[Any]:
    try:
        return np.asarray(entries)
    except ValueError:
        raise ValueError(
            f"{name} must have one number of entries per sample, got several"
        ) from None


def _is_missing(item: Any) -> bool:
    if isinstance(item, Real):
        return item != item
    # pandas' NA compares to nothing, and pandas is no dependency.
    return item is None or type(item).__name__ == "NAType"
