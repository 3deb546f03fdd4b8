"""The reader for MISA's and MAG's lists of word-aligned samples (CMU-MOSI, CMU-MOSEI)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tdmer.data.dataset import MultimodalDataset
from tdmer.data.reading import (
    assemble,
    check_options,
    check_split,
    kind,
    read_ids,
    read_labels,
    read_numbers,
    read_ragged,
    to_numpy,
)
from tdmer.data.store import Columns
from tdmer.data.unpickling import load_pickle


def load_misa(
    path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    embeddings: NDArray[Any] | Tensor | None = None,
    label_range: tuple[float, float] | None = (-3.0, 3.0),
    store: str | os.PathLike[str] | None = None,
) -> dict[str, MultimodalDataset]:
    """Read lists of word-aligned samples in MISA's or MAG's layout.

    A list holds ``((word_ids, visual, acoustic, words), label, segment)`` per sample, or without
    ``word_ids`` as MAG writes it: ``visual`` and ``acoustic`` are ``(t, f)``, one step per word,
    ``label`` is a number or ``(1, k)``, whose first column is the sentiment. Sequences are ragged,
    so that every step is real, zeros as well. The files are read by :func:`load_pickle`, which runs
    no code.

    Args:
        path: split name → file, such as ``{"train": "train.pkl", "valid": "dev.pkl"}``; or one
            file: of one list, which becomes a split of the file's name without its ending, or of a
            dict of lists, whose keys name the splits.
        embeddings: ``(vocabulary, d)``, a row for every word id: their rows become the modality
            ``text``. Without it there is no such modality, for a word id is no feature; the words
            themselves are in what :func:`load_pickle` returns.
        label_range: labels outside are an error; None: any finite number will do.
        store: a new folder to write the samples to and read them from; None: in memory.

    Returns:
        Split name → data set with modalities ``text`` (with ``embeddings``), ``audio`` and
        ``vision``, float32 labels and the segments as ids.

    Raises:
        OSError: a file cannot be opened, or the store cannot be written.
        ValueError: a pickle is damaged or refused; or a sample, shape, length, word id or label is
            wrong: the message names file and sample.

    Example:
        >>> import pickle, tempfile
        >>> words = np.array([4, 1]), np.ones((2, 47)), np.ones((2, 74)), ["very", "good"]
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     pickle.dump([(words, np.array([[2.4]]), "video[0]")], file)
        ...     file.flush()
        ...     data = load_misa({"train": file.name}, embeddings=np.ones((5, 300)))
        >>> data["train"].dims
        {'text': 300, 'audio': 74, 'vision': 47}

    Source: the layouts are those of https://github.com/declare-lab/MISA and
    https://github.com/WasifurRahman/BERT_multimodal_transformer.
    """
    check_options(label_range, store)
    table = None if embeddings is None else to_numpy("embeddings", embeddings)
    if table is not None and (
        not isinstance(table, np.ndarray) or table.dtype.kind != "f" or table.ndim != 2
    ):
        raise ValueError(f"embeddings must be floating point, (vocabulary, d), got {kind(table)}")
    splits = {}
    for split, file, where, samples in _lists(path):
        splits[split] = _columns(where, samples, table, label_range)
        check_split(where, splits[split], file)
    return assemble("path" if isinstance(path, Mapping) else os.fspath(path), splits, store)


def _lists(path: Any) -> Iterator[tuple[str, str | os.PathLike[str], str, Any]]:
    """Yield every split: its name, its file, how messages name it, and its samples."""
    if isinstance(path, Mapping):
        _check_splits("path", path)
        for split, file in path.items():
            yield split, file, os.fspath(file), load_pickle(file)
        return
    content, where = load_pickle(path), os.fspath(path)
    if not isinstance(content, Mapping):
        yield Path(where).stem, path, where, content
        return
    _check_splits(where, content)
    for split, samples in content.items():
        yield split, path, f"{where}[{split!r}]", samples


def _check_splits(name: str, splits: Mapping[Any, Any]) -> None:
    if not splits or not all(isinstance(split, str) for split in splits):
        raise ValueError(
            f"{name} must have the names of one or more splits as keys, got {list(splits)}"
        )


def _columns(
    where: str,
    samples: Any,
    embeddings: NDArray[Any] | None,
    label_range: tuple[float, float] | None,
) -> Columns:
    if not isinstance(samples, (list, tuple)) or not samples:
        raise ValueError(
            f"{where} must be a list of (features, label, segment) samples, got {_parts(samples)}"
        )
    for number, sample in enumerate(samples):
        _check_sample(f"{where}[{number}]", sample)
    ids = read_ids(f"{where} segments", [segment for _, _, segment in samples])
    values = [_sentiment(f"{where}[{number}]", sample[1]) for number, sample in enumerate(samples)]
    labels = read_labels(f"{where} labels", values, ids, label_range)
    lengths = np.array([len(features[0]) for features, _, _ in samples])
    inputs = {}
    if embeddings is not None:
        inputs["text"] = [
            _embedded(f"{where}[{number}]", sample[0], embeddings)
            for number, sample in enumerate(samples)
        ]
    for name, place in (("audio", 2), ("vision", 1)):
        items = [features[place] for features, _, _ in samples]
        inputs[name] = read_ragged(f"{where} {name}", items, ids, lengths)
    return Columns(inputs, labels, ids)


def _check_sample(name: str, sample: Any) -> None:
    if not isinstance(sample, (list, tuple)) or len(sample) != 3:
        raise ValueError(f"{name} must be (features, label, segment), got {_parts(sample)}")
    features = sample[0]
    if not isinstance(features, (list, tuple)) or len(features) not in (3, 4):
        raise ValueError(
            f"{name}[0] must be (word_ids, visual, acoustic, words) or (words, visual, acoustic), "
            f"got {_parts(features)}"
        )
    words = features[0]
    if not isinstance(words, (list, tuple)) and np.ndim(words) != 1:
        raise ValueError(f"{name}[0][0] must be a list or array, one per word, got {kind(words)}")


def _parts(value: Any) -> str:
    """Return how messages describe a tuple of the wrong length, or another value."""
    return f"{len(value)} parts" if isinstance(value, (list, tuple)) else kind(value)


def _sentiment(name: str, label: Any) -> float:
    """Return a number, or the first column of one row."""
    if isinstance(label, Real) and not isinstance(label, bool):
        return float(label)
    row = read_numbers(f"{name}[1]", label)
    if row.ndim == 2 and len(row) == 1:
        row = row[0]
    if row.ndim != 1 or len(row) == 0:
        raise ValueError(f"{name}[1] must be a number or one row of them, got {kind(label)}")
    return float(row[0])


def _embedded(name: str, features: Sequence[Any], embeddings: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of the words of a sample."""
    ids = features[0]
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{name}[0][0] must be an array of word ids, to be looked up in embeddings, "
            f"got {kind(ids)}"
        )
    wrong = (ids < 0) | (ids >= len(embeddings))
    if wrong.any():
        raise ValueError(
            f"{name}[0][0] must be word ids below {len(embeddings)}, the rows of embeddings, "
            f"got {ids[wrong][0]}"
        )
    return embeddings[ids]
