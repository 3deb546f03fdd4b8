"""Data sets from arrays and columns of one's own."""

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tdmer._checks import check_choice, check_names
from tdmer.data.dataset import MultimodalDataset, as_array, as_features, check_present, kind
from tdmer.data.readers import _pads


def from_arrays(
    inputs: Mapping[str, Any],
    labels: Any = None,
    *,
    ids: Iterable[Any] | None = None,
    lengths: Mapping[str, Any] | None = None,
    masks: Mapping[str, Any] | None = None,
    pads: str = "detect",
    classes: Iterable[str] | None = None,
) -> MultimodalDataset:
    """Make a data set of padded arrays, without their pads, or of one vector per sample.

    For every modality its real steps are those of its mask; else its length says how many there
    are, on that side of the sample where nothing but zeros lies outside; else steps of zeros at one
    end are pads. The end is found from the whole array: that at which more than twice as many
    samples have zeros as at the other, so that zeros within a sequence, or at its other end, are
    kept. A sample of zeros only, be it one single step or vector, lacks the modality: where such
    zeros are data, say so by ``pads="none"``, its length or its mask. NaN and ±inf are values, not
    pads.

    Args:
        inputs: modality name → ``(n, t, f)`` array or tensor of numbers, or ``(n, f)``, which is
            one step per sample.
        labels: ``(n,)`` or ``(n, k)`` numbers, of any kind of column; None and NaN: missing. With
            ``classes``: ``(n,)`` names of these. None as a whole: all are missing.
        ids: one name per sample, str, bytes or int; running numbers by default.
        lengths: modality name → ``(n,)`` whole numbers. Any modalities may be left out.
        masks: modality name → ``(n, t)``, True or 1 where a step is real, without holes, and
            ``(n,)`` or ``(n, 1)`` of vectors. What lies outside is dropped whatever it holds. Any
            modalities may be left out.
        pads: where steps of zeros are pads, of modalities without mask and lengths: ``"detect"``
            decides between ``"left"`` and ``"right"`` for the whole array; ``"both"`` takes them
            off either end of every sample, for arrays padded now on this side, now on that;
            ``"none"``: zeros are data. Give it where splits in arrays of their own are to be read
            by one rule.
        classes: the names of all classes, in the order of their numbers, for labels that are names.
            The data set keeps them; its labels are int64 class indices, -100 where missing.

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
        >>> vectors = {"text": np.eye(3, 4), "audio": np.array([[0.5], [0.0], [2.0]])}
        >>> from_arrays(vectors, [1, 0, 2]).lengths["audio"]
        tensor([1, 0, 1])
        >>> from_arrays(vectors, [1, 0, 2], pads="none").lengths["audio"]
        tensor([1, 1, 1])
        >>> data = from_arrays(vectors, ["sad", None, "glad"], classes=["glad", "sad"])
        >>> data.labels, data.classes
        (tensor([   1, -100,    0]), ['glad', 'sad'])
    """
    lengths, masks = {} if lengths is None else lengths, {} if masks is None else masks
    _check_names(inputs=inputs, lengths=lengths, masks=masks)
    check_choice("pads", pads, _pads.PADS)
    sequences = {}
    for modality, value in inputs.items():
        name = f"inputs[{modality!r}]"
        x = as_features(name, value, "(n, f)", "(n, t, f)")
        vectors = x.ndim == 2
        x = x[:, None] if vectors else x
        if modality in lengths and modality in masks:
            raise ValueError(f"{name} must have lengths or a mask, got both")
        if modality in masks:
            mask = as_array(f"masks[{modality!r}]", masks[modality])
            mask = mask[:, None] if vectors and mask.ndim == 1 else mask
            spans = _pads.spans_from_mask(f"masks[{modality!r}]", mask, x)
        elif modality in lengths:
            spans = _pads.spans_from_lengths(f"lengths[{modality!r}]", lengths[modality], x)
        else:
            (spans,) = _pads.spans_from_zeros(name, [x], pads)
        sequences[modality] = _pads.cut(x, spans)
    return _dataset(sequences, labels, ids, classes)


def from_sequences(
    inputs: Mapping[str, Iterable[Any]],
    labels: Any = None,
    *,
    ids: Iterable[Any] | None = None,
    classes: Iterable[str] | None = None,
) -> MultimodalDataset:
    """Make a data set of columns of ragged sequences.

    A column is anything that yields one item per sample: a list, a column of a pandas frame or a
    Hugging Face data set, an Arrow array. An item is ``(t_i, f)`` numbers, as an array, a tensor,
    nested lists or an array of arrays; None, NaN or no steps: the sample lacks the modality. Zeros
    are values.

    Args:
        inputs: modality name → column of sequences.
        labels: ``(n,)`` or ``(n, k)`` numbers, of any kind of column; None and NaN: missing. With
            ``classes``: ``(n,)`` names of these. None as a whole: all are missing.
        ids: one name per sample, str, bytes or int; running numbers by default.
        classes: the names of the classes, as in :func:`from_arrays`.

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
    _check_names(inputs=inputs)
    sequences = {}
    for modality, column in inputs.items():
        name = f"inputs[{modality!r}]"
        found = [_item(f"{name}[{n}]", x) for n, x in enumerate(_entries(name, column))]
        width = next((x.shape[1] for x in found if x is not None and x.ndim == 2), 0)
        missing = np.empty((0, width), np.float32)
        sequences[modality] = [missing if x is None else x for x in found]
    return _dataset(sequences, labels, ids, classes)


def _check_names(inputs: Any, **others: Any) -> None:
    for name, value in {"inputs": inputs, **others}.items():
        if not isinstance(value, Mapping):
            got = type(value).__name__
            raise TypeError(f"{name} must map modality names to arrays or columns, got {got}")
        for modality in value:
            if modality not in inputs:
                raise ValueError(f"{name} must name modalities of {list(inputs)}, got {modality!r}")
    check_names("inputs", list(inputs))


def _dataset(inputs: Mapping[str, Any], labels: Any, ids: Any, classes: Any) -> MultimodalDataset:
    names = None if classes is None else _names("classes", classes)
    if labels is None:
        # One for each sample, so that what is missing follows one rule.
        labels = [None if names else np.nan] * len(next(iter(inputs.values())))
    target = _target(labels) if names is None else _class_numbers(labels, names)
    data = MultimodalDataset(inputs, target, None if ids is None else _entries("ids", ids))
    data.classes = names
    check_present(data)
    return data


def _target(labels: Any) -> NDArray[Any]:
    """Return labels that are numbers as an array."""
    plain = labels if hasattr(labels, "__array__") else _entries("labels", labels)
    target = as_array("labels", plain)
    if target.dtype.kind == "O":
        # Columns of objects: None, or pandas' NA, among the numbers, or one list per sample.
        target = as_array("labels", [np.nan if _is_missing(x) else x for x in target.tolist()])
    if target.dtype.kind == "U":
        raise ValueError(f"labels must be numbers, or names of classes=[...], got {kind(target)}")
    return target[:, 0] if target.shape[1:] == (1,) else target


def _class_numbers(labels: Any, names: list[Any]) -> NDArray[np.int64]:
    """Return the numbers of labels that are names, -100 where one is missing."""
    numbers = {name: number for number, name in enumerate(names) if isinstance(name, str)}
    if len(numbers) != len(names) or len(names) < 2:
        raise ValueError(f"classes must be two or more different strings, got {names!r:.100}")
    found = []
    for sample, label in enumerate(_names("labels", labels)):
        known = isinstance(label, str) and label in numbers
        if not known and not _is_missing(label):
            raise ValueError(f"labels must be of {names}, got {label!r:.100} in sample {sample}")
        found.append(numbers[label] if known else -100)
    return np.array(found, np.int64)


def _names(name: str, column: Any) -> list[Any]:
    """Return the entries of a column, its strings as plain ones."""
    return [str(x) if isinstance(x, str) else x for x in _entries(name, column)]


def _item(name: str, item: Any) -> NDArray[Any] | None:
    """Return one item of a column as an array, None where it is missing."""
    x = None if _is_missing(item) else as_array(name, item)
    if x is not None and x.dtype.kind == "O" and x.ndim == 1 and len(x):
        # What pandas makes of nested lists in a file.
        x = as_array(name, [np.asarray(step) for step in x])
    return None if x is None or x.shape == (0,) else x


def _entries(name: str, column: Any) -> list[Any]:
    scalar = isinstance(column, (np.ndarray, Tensor)) and column.ndim == 0
    if scalar or isinstance(column, (str, bytes, Mapping)) or not isinstance(column, Iterable):
        raise TypeError(f"{name} must be a column, such as a list, got {type(column).__name__}")
    # Scalars of Arrow know how to become plain.
    entries = (x.as_py() if hasattr(x, "as_py") else x for x in column)
    return [x.item() if isinstance(x, Tensor) and x.ndim == 0 else x for x in entries]


def _is_missing(item: Any) -> bool:
    if isinstance(item, Real):
        return item != item
    # pandas' NA compares to nothing, and pandas is no dependency.
    return item is None or type(item).__name__ == "NAType"
