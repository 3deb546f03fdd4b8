"""The reader for MulT's pickles (CMU-MOSI, CMU-MOSEI, IEMOCAP)."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer.data.dataset import MultimodalDataset
from tdmer.data.padding import cut, find_extent, sample_name, spans_from_zeros
from tdmer.data.reading import (
    assemble,
    check_keys,
    check_options,
    check_split,
    find_keys,
    read_ids,
    read_labels,
    read_numbers,
    read_padded,
    read_splits,
)
from tdmer.data.store import Columns
from tdmer.data.unpickling import load_pickle


def load_mult(
    path: str | os.PathLike[str],
    *,
    label_range: tuple[float, float] | None = (-3.0, 3.0),
    store: str | os.PathLike[str] | None = None,
) -> dict[str, MultimodalDataset]:
    """Read a pickle in MulT's layout, without its pads.

    The file is a dict of ``train``, ``valid`` and ``test``, each a dict of ``text``, ``audio`` and
    ``vision`` (``(n, t, f)``, padded with zeros, by MulT on the left), ``labels`` and ``id``. One
    split and one modality are enough. It is read by :func:`load_pickle`, which runs no code.

    The file has no lengths: steps of zeros are pads at that end of the time axis where more than
    twice as many samples have them as at the other; the left where neither has. So zeros within a
    sequence are kept, and a first word without an embedding is not. A sample of zeros only lacks
    the modality. NaN and ±inf stay as they are.

    Args:
        path: the file.
        label_range: labels outside are an error; None: any finite number will do.
        store: a new folder to write the samples to and read them from; None: in memory.

    Returns:
        Split name → data set with those of the modalities ``text``, ``audio`` and ``vision`` that
        the file has. Labels ``(n, 1, 1)`` are read as ``(n,)`` float32; those of IEMOCAP,
        ``(n, k, 2)`` with a one in the second column where an emotion is present, as ``(n, k)``
        float32 of 0 and 1, as :class:`tdmer.tasks.MultiLabel` takes them. The parts of an id are
        joined with blanks; without ids, samples have the name of the split and a running number.

    Raises:
        OSError: the file cannot be opened, or the store cannot be written.
        ValueError: the pickle is damaged or refused; or a key, split, shape or label is wrong: the
            message names file, split, key and sample.

    Example:
        >>> import pickle, tempfile
        >>> x = np.zeros((2, 3, 4), np.float32)
        >>> x[0, 1:] = x[1, 2] = 1
        >>> split = {"text": x, "labels": np.array([[[0.6]], [[-1.0]]])}
        >>> split["id"] = np.array([[b"video", b"0.5", b"1.5"], [b"video", b"1.5", b"4"]])
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     pickle.dump({"test": split}, file)
        ...     file.flush()
        ...     data = load_mult(file.name)
        >>> data["test"].lengths["text"], data["test"].ids
        (tensor([2, 1]), ['video 0.5 1.5', 'video 1.5 4'])

    Source: the layout is that of https://github.com/yaohungt/Multimodal-Transformer.
    """
    check_options(label_range, store)
    where = os.fspath(path)
    splits = {}
    for split, content in read_splits(where, load_pickle(path)).items():
        place = f"{where}[{split!r}]"
        check_keys(place, content, ("labels",))
        values = _one_row_each(f"{place}['labels']", content["labels"])
        ids = _ids(f"{place}['id']", content.get("id"), split, len(values))
        labels = _labels(f"{place}['labels']", values, ids, label_range)
        inputs = {}
        for name in find_keys(place, content, ("text", "audio", "vision")):
            x = read_padded(f"{place}[{name!r}]", content[name], len(ids))
            spans = spans_from_zeros(f"{place}[{name!r}]", find_extent(x), x.shape[1], "left")
            inputs[name] = cut(x, spans)
        splits[split] = Columns(inputs, labels, ids)
        check_split(place, splits[split], path)
    return assemble(where, splits, store)


def _one_row_each(name: str, values: Any) -> NDArray[Any]:
    labels = read_numbers(name, values)
    if labels.ndim == 0 or len(labels) == 0:
        raise ValueError(f"{name} must hold at least one label, got shape {labels.shape}")
    return labels


def _labels(
    name: str, labels: NDArray[Any], ids: Sequence[str], label_range: tuple[float, float] | None
) -> NDArray[Any]:
    """Return ``(n,)``, or ``(n, k)`` 0 and 1 from pairs of states."""
    if labels.ndim == 3 and labels.shape[2] == 2:
        present = labels[..., 1]
        wrong = ((present != 0) & (present != 1)) | (labels[..., 0] != 1 - present)
        if wrong.any():
            number, place = np.argwhere(wrong)[0].tolist()
            raise ValueError(
                f"{name} must be pairs of one 1 and one 0, got {labels[number, place].tolist()} in "
                f"{sample_name(number, ids)}"
            )
        return present.astype(np.float32)
    if labels.size != len(labels):
        raise ValueError(f"{name} must have shape (n, 1, 1) or (n, k, 2), got {labels.shape}")
    return read_labels(name, labels.reshape(-1), ids, label_range).astype(np.float32)


def _ids(name: str, values: Any, split: str, count: int) -> list[str]:
    """Return one name per sample, of its parts; of split and number where there is none."""
    if values is None:
        return [f"{split} {number}" for number in range(count)]
    ids = values
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.size:
        # Start and end of a segment may be numbers.
        parts = [str(part) if isinstance(part, float) else part for part in values.flat]
        width = len(parts) // len(values)
        parts = read_ids(name, parts)
        ids = [" ".join(parts[at : at + width]) for at in range(0, len(parts), width)]
    ids = read_ids(name, ids)
    if len(ids) != count:
        raise ValueError(f"{name} must be one per label, {count}, got {len(ids)}")
    return ids
