"""The reader for MulT's pickles (CMU-MOSI, CMU-MOSEI, IEMOCAP)."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_choice
from tdmer.data.dataset import MultimodalDataset, as_array, as_features
from tdmer.data.readers import _columns, _pads
from tdmer.data.readers._pickle import load_pickle


def load_mult(
    path: str | os.PathLike[str],
    *,
    label_range: tuple[float, float] | None = (-3.0, 3.0),
    pads: str = "detect",
    store: str | os.PathLike[str] | None = None,
) -> dict[str, MultimodalDataset]:
    """Read a pickle in MulT's layout, without its pads.

    The file is a dict of ``train``, ``valid`` and ``test``, each a dict of ``text``, ``audio`` and
    ``vision`` (``(n, t, f)``, padded with zeros, by MulT on the left), ``labels`` and ``id``. One
    split and one modality are enough. It is read by :func:`load_pickle`, which runs no code.

    The file has no lengths: steps of zeros are pads at that end of the time axis where more than
    twice as many samples have them as at the other, in all splits together; the left where neither
    has. So zeros within a sequence are kept, and a first word without an embedding is not. A sample
    of zeros only lacks the modality. NaN and ±inf stay as they are.

    Args:
        path: the file.
        label_range: labels outside are an error; None: any finite number will do.
        pads: where steps of zeros are pads, as in :func:`from_arrays`.
        store: a new folder to write the samples to and read them from; None: in memory.

    Returns:
        Split name → data set with those of the modalities ``text``, ``audio`` and ``video``
        (``vision`` in the file) that the file has. Labels ``(n, 1, 1)`` are read as ``(n,)``
        float32; those of IEMOCAP, ``(n, k, 2)`` with a one in the second column where an emotion
        is present, as ``(n, k)`` float32 of 0 and 1, as :class:`tdmer.tasks.MultiLabel` takes them.
        The parts of an id are joined with blanks; without ids, samples have the name of the split
        and a running number.

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
    check_choice("pads", pads, _pads.PADS)
    _columns.check_options(label_range, store)
    where, splits = os.fspath(path), {}
    padded: dict[str, dict[str, NDArray[Any]]] = {}
    for split, content in _columns.read_splits(where, load_pickle(path), "labels").items():
        name = f"{where}[{split!r}]"
        labels = _labels(f"{name}['labels']", content["labels"])
        for modality, key in _columns.find_modalities(content).items():
            x = as_features(f"{name}[{key!r}]", content[key], "(n, t, f)")
            padded.setdefault(modality, {})[split] = x
        ids = content.get("id", [f"{split} {number}" for number in range(len(labels))])
        splits[split] = _columns.Columns(name, {}, labels, ids)
    for modality, arrays in padded.items():
        spans = _pads.spans_from_zeros(modality, list(arrays.values()), pads, "left")
        for (split, x), its in zip(arrays.items(), spans, strict=True):
            splits[split].inputs[modality] = _pads.cut(x, its)
    return _columns.build(where, splits, label_range, store)


def _labels(name: str, values: Any) -> NDArray[Any]:
    """Return ``(n,)``, or ``(n, k)`` 0 and 1 from pairs of states."""
    labels = as_array(name, values)
    if labels.ndim == 3 and labels.shape[2] == 2:
        absent, present = labels[..., 0], labels[..., 1]
        if not (np.isin(present, (0, 1)) & (absent == 1 - present)).all():
            raise ValueError(f"{name} must be pairs of one 1 and one 0, got others")
        return present
    if labels.ndim == 0 or labels.size != len(labels):
        raise ValueError(f"{name} must have shape (n, 1, 1) or (n, k, 2), got {labels.shape}")
    return labels.reshape(-1)
