"""What all readers share: parts of files and columns, checked and named in every message."""

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from tdmer.data.dataset import MultimodalDataset
from tdmer.data.padding import sample_name
from tdmer.data.store import Columns, build, check_new_store

_SPLITS = ("train", "valid", "test")
# float32 holds every whole number up to here.
_EXACT = 2**24
# Arrays that samples share may take this many times the size of the file.
_REPEATED = 8


def read_ids(name: str, values: Any) -> list[str]:
    """Return names as str: from str, bytes (UTF-8, else Latin-1) and whole numbers."""
    if not isinstance(values, (list, tuple)) and not (
        isinstance(values, np.ndarray) and values.ndim == 1
    ):
        raise ValueError(f"{name} must be a list or array of names, got {kind(values)}")
    if len(values) == 0:
        raise ValueError(f"{name} must name at least one sample, got none")
    return [_id(name, number, value) for number, value in enumerate(values)]


def _id(name: str, number: int, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin1")
    if not isinstance(value, (str, Integral)) or isinstance(value, bool):
        raise ValueError(
            f"{name}[{number}] must be a str, bytes or int, got {type(value).__name__}"
        )
    return str(value)


def read_numbers(name: str, values: Any, kinds: str = "fiu") -> NDArray[Any]:
    """Return a flat list of numbers, or an array whose dtype is of one of NumPy's kinds."""
    # Nested lists of an untrusted file could make NumPy build an array far larger than the file.
    if isinstance(values, (list, tuple)) and all(isinstance(x, (Real, np.number)) for x in values):
        values = np.array(values, dtype=None if values else "int64")
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
        rule = "numbers" if "f" in kinds else "whole numbers"
        raise ValueError(f"{name} must be a list or array of {rule}, got {kind(values)}")
    return values


def read_labels(
    name: str,
    values: Any,
    ids: Sequence[str],
    label_range: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """Return labels ``(n,)`` or ``(n, k)``, finite or NaN and within the range."""
    labels = read_numbers(name, values)
    if labels.ndim not in (1, 2) or len(labels) != len(ids) or 0 in labels.shape:
        raise ValueError(
            f"{name} must have shape (n,) or (n, k) for the n = {len(ids)} ids, got {labels.shape}"
        )
    floating = labels.dtype.kind == "f"
    if floating:
        labels = labels.astype(np.float64)
    largest = np.finfo(np.float32).max if floating else np.iinfo(np.int64).max
    low, high = (-largest, largest) if label_range is None else label_range
    low, high = max(low, -largest), min(high, largest)
    wrong = (labels < low) | (labels > high)
    if wrong.any():
        number, *rest = np.argwhere(wrong)[0].tolist()
        rule = "finite numbers or NaN" if label_range is None else f"in [{low:g}, {high:g}] or NaN"
        mend = "" if label_range is None else "; correct it, or widen label_range"
        raise ValueError(
            f"{name} must be {rule}, got {labels[(number, *rest)]:g} in "
            f"{sample_name(number, ids)}{mend}"
        )
    return labels[:, 0] if labels.shape[1:] == (1,) else labels


def check_options(label_range: Any, store: str | os.PathLike[str] | None) -> None:
    """Raise, before a file is read, unless the options that all readers share are right."""
    if store is not None:
        check_new_store(store)
    if label_range is None:
        return
    if not isinstance(label_range, (tuple, list)) or not all(
        isinstance(x, Real) for x in label_range
    ):
        raise TypeError(f"label_range must be None or two numbers, got {label_range!r}")
    if len(label_range) != 2 or not label_range[0] < label_range[1]:
        raise ValueError(f"label_range must be two numbers, the lower first, got {label_range!r}")


def read_padded(name: str, x: Any, count: int) -> Float[np.ndarray, "n t f"]:
    """Return a padded array of features, floating point."""
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu" or x.ndim != 3:
        raise ValueError(
            f"{name} must be an array of numbers of shape ({count}, t, f), got {kind(x)}"
        )
    if len(x) != count or 0 in x.shape:
        raise ValueError(
            f"{name} must hold one padded sequence per sample, ({count}, t, f) with t and f at "
            f"least 1, got shape {x.shape}"
        )
    return as_floating(name, x)


def read_ragged(
    name: str, items: Any, ids: Sequence[str], lengths: NDArray[Any] | None = None
) -> list[NDArray[Any]]:
    """Return a list of ``(t_i, f)`` arrays of numbers, floating point."""
    items = list(items)
    if len(items) != len(ids):
        raise ValueError(f"{name} must hold one sequence per sample, {len(ids)}, got {len(items)}")
    for number, x in enumerate(items):
        at = f"{name}, {sample_name(number, ids)},"
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu" or x.ndim != 2:
            raise ValueError(f"{at} must be an array of (t, f) numbers, got {kind(x)}")
        if x.shape[1] != items[0].shape[1] or x.shape[1] == 0:
            raise ValueError(
                f"{at} must have the {items[0].shape[1] or 'one or more'} features of the first "
                f"sample, got shape {x.shape}"
            )
        if lengths is not None and len(x) != lengths[number]:
            raise ValueError(
                f"{at} must have the {lengths[number]} steps that the file declares, got {len(x)}"
            )
    return [as_floating(name, x) for x in items]


def as_floating(name: str, x: NDArray[Any]) -> NDArray[Any]:
    """Return floating point unchanged, whole numbers as float32 if that holds them exactly."""
    if x.dtype.kind == "f":
        return x
    if x.size and (x.min() < -_EXACT or x.max() > _EXACT):
        raise ValueError(
            f"{name} must hold whole numbers of at most 2**24, which float32 can hold, "
            f"got {x.min()} to {x.max()}"
        )
    return x.astype(np.float32)


def read_mask(name: str, mask: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "n t"]:
    """Return a mask of bools, or of the numbers 0 and 1, as bools."""
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "bfiu" or mask.shape != shape:
        raise ValueError(
            f"{name} must be an array of True and False, or 1 and 0, of shape {shape}, "
            f"got {kind(mask)}"
        )
    real: NDArray[np.bool_] = mask != 0
    wrong = real & (mask != 1)
    if wrong.any():
        raise ValueError(
            f"{name} must be 1 where a step is real and 0 elsewhere, "
            f"got {mask[tuple(np.argwhere(wrong)[0])]}"
        )
    return real


def read_lengths(name: str, values: Any, count: int) -> NDArray[Any]:
    """Return one whole number per sample."""
    lengths = read_numbers(name, values, "iu")
    if lengths.shape != (count,):
        raise ValueError(f"{name} must be {count} lengths, got shape {lengths.shape}")
    return lengths


def read_splits(name: str, content: Any) -> dict[str, Mapping[str, Any]]:
    """Return the splits of a file that keeps them as dicts, in the order of training."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} must be a dict of {list(_SPLITS)}, got {kind(content)}")
    for split, value in content.items():
        if split not in _SPLITS:
            raise ValueError(f"{name} must have splits of {list(_SPLITS)} only, got {split!r}")
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}[{split!r}] must be a dict of arrays, got {kind(value)}")
    if not content:
        raise ValueError(f"{name} must have at least one split of {list(_SPLITS)}, got none")
    return {split: content[split] for split in _SPLITS if split in content}


def check_keys(name: str, split: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise unless a split has the keys."""
    for key in keys:
        if key not in split:
            raise ValueError(f"{name} must have the key {key!r}, got {sorted(map(str, split))}")


def find_keys(name: str, split: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return which of the keys a split has, at least one."""
    found = [key for key in keys if key in split]
    if not found:
        raise ValueError(
            f"{name} must have at least one of the keys {list(keys)}, got {sorted(map(str, split))}"
        )
    return found


def check_present(name: str, inputs: Mapping[str, Sequence[Any]], ids: Sequence[str]) -> None:
    """Raise if a sample has no step in any modality."""
    for number, sequences in enumerate(zip(*inputs.values(), strict=True)):
        if not any(map(len, sequences)):
            raise ValueError(
                f"{name} must have at least one real step in one modality of every sample, "
                f"got none in {sample_name(number, ids)}; leave the sample out"
            )


def check_split(name: str, columns: Columns, path: str | os.PathLike[str]) -> None:
    """Raise if a sample of a file has no step, or the file repeats its arrays too often."""
    check_present(name, columns.inputs, columns.ids)
    total = sum(x.nbytes for sequences in columns.inputs.values() for x in sequences)
    most = _REPEATED * os.path.getsize(path)
    # A pickle can name one array a million times, and each time it would be copied.
    if total > most:
        raise ValueError(
            f"{name} must not repeat its arrays to more than {_REPEATED} times the size of the "
            f"file, {most} bytes, got {total}"
        )


def assemble(
    name: str, splits: Mapping[str, Columns], store: str | os.PathLike[str] | None
) -> dict[str, MultimodalDataset]:
    """Make the data sets of a file once its splits agree in modalities, widths and labels."""
    first, *others = splits
    for split in others:
        one, other = _form(splits[first]), _form(splits[split])
        if one != other:
            raise ValueError(
                f"{name} must have the same modalities, widths and labels in all splits, "
                f"got {one} in {first!r} and {other} in {split!r}"
            )
    return build(splits, store)


def _form(columns: Columns) -> dict[str, Any]:
    widths = {modality: x[0].shape[1] for modality, x in columns.inputs.items()}
    return {**widths, "labels": np.shape(columns.labels)[1:]}


def to_numpy(name: str, x: Any) -> Any:
    """Return a tensor as an array, and anything else unchanged."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one: fill it, as with NaN")
    if not isinstance(x, Tensor):
        return x
    if x.layout != torch.strided or x.is_meta:
        raise TypeError(f"{name} must be a dense tensor, got {x.layout} on device {x.device}")
    x = x.detach().cpu()
    # NumPy has no bfloat16.
    return (x.float() if x.is_floating_point() and x.itemsize < 4 else x).numpy()


def kind(value: Any) -> str:
    """Return how messages describe a value that is not what it should be."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, list) and value:
        return f"list of {' and '.join(sorted({type(entry).__name__ for entry in value}))}"
    return type(value).__name__
