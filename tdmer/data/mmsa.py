"""The reader for MMSA's pickles (CMU-MOSI, CMU-MOSEI, CH-SIMS)."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer.data.dataset import MultimodalDataset
from tdmer.data.unpickling import load_pickle

_SPLITS = ("train", "valid", "test")
_MODALITIES = ("text", "audio", "vision")


def load_mmsa(path: str | os.PathLike[str]) -> dict[str, MultimodalDataset]:
    """Read a pickle in MMSA's layout, without its pads.

    The file is a dict of ``train``, ``valid`` and ``test``, each a dict of ``text``, ``audio`` and
    ``vision`` (``(n, t, f)``, padded on the right with zeros), ``regression_labels`` and ``id``.
    It is read by :func:`load_pickle`, which runs no code.

    The number of real steps comes from the attention mask, row 1 of ``text_bert``, for text and
    from ``audio_lengths`` and ``vision_lengths`` for the others. Where the file lacks it, steps of
    zeros at the end are pads. Zeros before the last real step are kept; a sequence of no real step
    means that the modality is missing. NaN and ±inf entries stay as they are.

    Args:
        path: the file.

    Returns:
        Split name → data set with modalities ``text``, ``audio`` and ``vision``, float32 labels
        (NaN where missing) and the ids of the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the pickle is damaged or refused; or a key, split, shape or length is wrong: the
            message names file, split and key.

    Example:
        >>> import numpy as np, pickle, tempfile
        >>> x = np.zeros((2, 3, 4), np.float32)
        >>> x[0, :2] = x[1, 2] = 1
        >>> split = {"text": x, "audio": x, "vision": x, "id": ["a", "b"]}
        >>> split["regression_labels"] = np.array([0.6, -1.0])
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     pickle.dump({"train": split, "valid": split, "test": split}, file)
        ...     file.flush()
        ...     data = load_mmsa(file.name)
        >>> data["train"].lengths["text"]
        tensor([2, 3])

    Source: the layout is that of https://github.com/thuiar/MMSA.
    """
    content = load_pickle(path)
    where = os.fspath(path)
    _check_keys(where, content, _SPLITS)
    return {split: _load_split(f"{where}[{split!r}]", content[split]) for split in _SPLITS}


def _check_keys(where: str, content: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a dict of {list(keys)}, got {type(content).__name__}")
    for key in keys:
        if key not in content:
            raise ValueError(f"{where} must have the key {key!r}, got {sorted(map(str, content))}")


def _load_split(where: str, split: Any) -> MultimodalDataset:
    _check_keys(where, split, (*_MODALITIES, "regression_labels", "id"))
    labels = _numbers(where, split, "regression_labels", "fiu")
    if len(labels) == 0 or np.isinf(labels).any():
        got = "none" if len(labels) == 0 else f"inf in sample {int(np.isinf(labels).argmax())}"
        raise ValueError(
            f"{where}['regression_labels'] must be at least one number, none infinite, got {got}"
        )
    if not isinstance(split["id"], (list, np.ndarray)):
        got = type(split["id"]).__name__
        raise ValueError(f"{where}['id'] must be a list or array of names, got {got}")
    inputs = {}
    for name in _MODALITIES:
        array = split[name]
        if (
            not isinstance(array, np.ndarray)
            or array.dtype.kind != "f"
            or array.ndim != 3
            or len(array) != len(labels)
        ):
            raise ValueError(
                f"{where}[{name!r}] must be a floating-point array of shape ({len(labels)}, t, f), "
                f"the first axis that of 'regression_labels', got {_kind(array)}"
            )
        lengths = _lengths(where, split, name, array)
        inputs[name] = [x[:length] for x, length in zip(array, lengths, strict=True)]
    try:
        return MultimodalDataset(inputs, labels.astype(np.float32), split["id"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must be a valid split: {error}") from error


def _lengths(where: str, split: Mapping[str, Any], name: str, array: NDArray[Any]) -> list[int]:
    """Return the number of real steps of every sample of one modality."""
    count, longest = array.shape[:2]
    if name == "text" and "text_bert" in split:
        tokens = split["text_bert"]
        if (
            not isinstance(tokens, np.ndarray)
            or tokens.dtype.kind not in "iuf"
            or tokens.shape != (count, 3, longest)
        ):
            raise ValueError(
                f"{where}['text_bert'] must be an array of numbers of shape "
                f"({count}, 3, {longest}), the steps those of 'text', got {_kind(tokens)}"
            )
        mask = tokens[:, 1] != 0
        # A mask with a hole, or padded on the left, has no length.
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            sample = int((mask[:, 1:] & ~mask[:, :-1]).any(1).argmax())
            raise ValueError(
                f"{where}['text_bert'] must have attention masks (row 1) of ones, then zeros, "
                f"got another in sample {sample}"
            )
        return [int(length) for length in mask.sum(1)]
    key = f"{name}_lengths"
    if key not in split:
        return [_steps(x) for x in array]
    lengths = _numbers(where, split, key, "iu")
    if len(lengths) != count:
        raise ValueError(f"{where}[{key!r}] must be {count} lengths, got {len(lengths)}")
    wrong = (lengths < 0) | (lengths > longest)
    if wrong.any():
        sample = int(wrong.argmax())
        raise ValueError(
            f"{where}[{key!r}] must be in [0, {longest}], the steps of {name!r}, "
            f"got {lengths[sample]} in sample {sample}"
        )
    return [int(length) for length in lengths]


def _numbers(where: str, split: Mapping[str, Any], key: str, kinds: str) -> NDArray[Any]:
    """Return a list or array of numbers, whose dtype is of one of NumPy's kinds."""
    value = split[key]
    # Nested lists could make NumPy build an array far larger than the file.
    if isinstance(value, list) and all(isinstance(x, (int, float, np.number)) for x in value):
        value = np.array(value, dtype=None if value else "int64")
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
        rule = "numbers" if "f" in kinds else "whole numbers"
        raise ValueError(f"{where}[{key!r}] must be a list or array of {rule}, got {_kind(value)}")
    return value


def _steps(x: NDArray[Any]) -> int:
    """Return the number of steps up to the last that is not all zero."""
    real = np.flatnonzero(x.any(axis=1))
    return int(real[-1]) + 1 if len(real) else 0


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
