"""The reader for MISA's and MAG's lists of word-aligned samples (CMU-MOSI, CMU-MOSEI)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tdmer.data.dataset import MultimodalDataset, as_features, kind
from tdmer.data.readers import _columns
from tdmer.data.readers._pickle import load_pickle


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
        ``video``, float32 labels and the segments as ids.

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
        {'text': 300, 'audio': 74, 'video': 47}

    Source: the layouts are those of https://github.com/declare-lab/MISA and
    https://github.com/WasifurRahman/BERT_multimodal_transformer.
    """
    _columns.check_options(label_range, store)
    table = None if embeddings is None else as_features("embeddings", embeddings, "(n, f)")
    splits = {split: _split(name, samples, table) for split, name, samples in _lists(path)}
    if not splits:
        raise ValueError(f"path must hold at least one split, got {path!r}")
    where = "path" if isinstance(path, Mapping) else os.fspath(path)
    return _columns.build(where, splits, label_range, store)


def _lists(path: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield every split: its name, how messages name it, and its samples."""
    if isinstance(path, Mapping):
        for split, file in path.items():
            yield split, os.fspath(file), load_pickle(file)
        return
    content, where = load_pickle(path), os.fspath(path)
    if not isinstance(content, Mapping):
        yield Path(where).stem, where, content
        return
    for split, samples in content.items():
        yield split, f"{where}[{split!r}]", samples


def _split(name: str, samples: Any, embeddings: NDArray[Any] | None) -> _columns.Columns:
    """Return the columns of a list of samples."""
    if not isinstance(samples, (list, tuple)) or not samples:
        raise ValueError(f"{name} must be a list of one or more samples, got {kind(samples)}")
    for number, sample in enumerate(samples):
        if not _is_sample(sample):
            raise ValueError(
                f"{name}[{number}] must be (features, label, segment), and features (word_ids, "
                f"visual, acoustic, words) or (words, visual, acoustic), got {kind(sample)}"
            )
    words, visual, acoustic = (list(x) for x in zip(*(x[0][:3] for x in samples), strict=True))
    inputs: dict[str, Sequence[Any]] = {"audio": acoustic, "video": visual}
    for modality, column in inputs.items():
        _columns.check_lengths(f"{name} {modality}", column, list(map(len, words)))
    if embeddings is not None:
        text = [_embedded(f"{name}[{n}][0][0]", ids, embeddings) for n, ids in enumerate(words)]
        inputs = {"text": text, **inputs}
    # Of a row of labels the first is the sentiment.
    labels = [np.ravel(label)[:1] for _, label, _ in samples]
    ids = [segment for *_, segment in samples]
    return _columns.Columns(name, inputs, np.concatenate(labels), ids)


def _is_sample(sample: Any) -> bool:
    parts = isinstance(sample, (list, tuple)) and len(sample) == 3 and sample[0]
    return isinstance(parts, (list, tuple)) and len(parts) in (3, 4) and np.ndim(parts[0]) == 1


def _embedded(name: str, words: Any, embeddings: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of the words of a sample."""
    ids = np.asarray(words)
    if ids.dtype.kind not in "iu" or ((ids < 0) | (ids >= len(embeddings))).any():
        rule = f"must be word ids in [0, {len(embeddings)}), the rows of embeddings"
        raise ValueError(f"{name} {rule}, got {words!r:.100}")
    rows: NDArray[Any] = embeddings[ids]
    return rows
