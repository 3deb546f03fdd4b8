"""The reader for MMSA's pickles (CMU-MOSI, CMU-MOSEI, CH-SIMS)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_choice
from tdmer.data.dataset import MultimodalDataset
from tdmer.data.padding import (
    Spans,
    cut,
    find_extent,
    sample_name,
    spans_from_alignment,
    spans_from_lengths,
    spans_from_mask,
    spans_from_zeros,
)
from tdmer.data.reading import (
    assemble,
    check_keys,
    check_options,
    check_split,
    find_keys,
    kind,
    read_ids,
    read_labels,
    read_lengths,
    read_mask,
    read_padded,
    read_ragged,
    read_splits,
)
from tdmer.data.store import Columns
from tdmer.data.unpickling import load_pickle


def load_mmsa(
    path: str | os.PathLike[str],
    *,
    text: str = "text",
    labels: str | Sequence[str] = "regression_labels",
    label_range: tuple[float, float] | None = (-3.0, 3.0),
    store: str | os.PathLike[str] | None = None,
) -> dict[str, MultimodalDataset]:
    """Read a pickle in MMSA's layout, aligned or not, without its pads.

    The file is a dict of ``train``, ``valid`` and ``test``, each a dict of ``text``, ``audio`` and
    ``vision`` (``(n, t, f)``, padded with zeros, or a list of ``(t_i, f)``), ``regression_labels``
    and ``id``. One split and one modality are enough. It is read by :func:`load_pickle`, which runs
    no code.

    The real steps of a modality are

    - of text: those of the attention mask, row 1 of ``text_bert``;
    - of the others: as many as ``audio_lengths`` and ``vision_lengths`` say, on the side where
      nothing but zeros lies outside;
    - without lengths, where the array has as many steps as the mask and no value outside of it:
      the array is aligned to the words, and its real steps are those of the mask. Zeros at a real
      word are data; a sample of zeros only lacks the modality;
    - else all but the zeros at that end of the time axis where more than twice as many samples
      have zeros as at the other; the right where neither has.

    Zeros within a sequence are kept, and NaN and ±inf entries stay as they are. A sequence of no
    real step means that the modality is missing.

    Args:
        path: the file.
        text: ``"text"``, or ``"text_bert"``: modality ``text`` has three features, the token id,
            attention mask and token type, as floats that hold them exactly.
        labels: the key of the labels, or several: then labels are ``(n, k)``, one column per key,
            such as ``("regression_labels", "regression_labels_T")`` of CH-SIMS.
        label_range: labels outside are an error; None: any finite number will do.
        store: a new folder to write the samples to and read them from; None: in memory.

    Returns:
        Split name → data set with those of the modalities ``text``, ``audio`` and ``vision`` that
        the file has, float32 labels (NaN where missing) and the ids of the file.

    Raises:
        OSError: the file cannot be opened, or the store cannot be written.
        ValueError: the pickle is damaged or refused; or a key, split, shape, length or label is
            wrong: the message names file, split, key and sample.

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
    check_choice("text", text, ("text", "text_bert"))
    check_options(label_range, store)
    keys = [labels] if isinstance(labels, str) else labels
    _check_label_keys(keys)
    where = os.fspath(path)
    splits = {}
    for split, content in read_splits(where, load_pickle(path)).items():
        place = f"{where}[{split!r}]"
        check_keys(place, content, ("id", *keys))
        ids = read_ids(f"{place}['id']", content["id"])
        targets = [read_labels(f"{place}[{key!r}]", content[key], ids, label_range) for key in keys]
        inputs = _inputs(place, content, text, ids)
        splits[split] = Columns(inputs, _table(place, keys, targets), ids)
        check_split(place, splits[split], path)
    return assemble(where, splits, store)


def _check_label_keys(keys: Any) -> None:
    message = f"labels must be a key of the file, or several, got {keys!r}"
    if not isinstance(keys, Sequence) or not all(isinstance(key, str) for key in keys):
        raise TypeError(message)
    if not keys:
        raise ValueError(message)


def _table(where: str, keys: Sequence[str], targets: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return the labels of one key as they are, those of several as columns."""
    if len(keys) == 1:
        return targets[0].astype(np.float32)
    for key, target in zip(keys, targets, strict=True):
        if target.ndim != 1:
            raise ValueError(
                f"{where}[{key!r}] must be one number per sample to be read with other labels, "
                f"got shape {target.shape}"
            )
    return np.stack(targets, axis=1).astype(np.float32)


def _inputs(
    where: str, split: Mapping[str, Any], text: str, ids: Sequence[str]
) -> dict[str, list[NDArray[Any]]]:
    """Return the sequences of the modalities that a split has."""
    found = find_keys(where, split, (text, "audio", "vision"))
    words = None
    if "text_bert" in split:
        words = _words(f"{where}['text_bert']", split["text_bert"], ids)
    names = {key: "text" if key == text else key for key in found}
    return {name: _sequences(where, split, name, key, words, ids) for key, name in names.items()}


class _Words(NamedTuple):
    """The attention mask: the real steps and how many there are with pads."""

    spans: Spans
    steps: int


def _words(name: str, tokens: Any, ids: Sequence[str]) -> _Words:
    if (
        not isinstance(tokens, np.ndarray)
        or tokens.dtype.kind not in "fiu"
        or tokens.ndim != 3
        or tokens.shape[:2] != (len(ids), 3)
        or tokens.shape[2] == 0
    ):
        raise ValueError(
            f"{name} must be an array of numbers of shape ({len(ids)}, 3, t), got {kind(tokens)}"
        )
    steps = tokens.shape[2]
    mask = read_mask(f"{name}[:, 1]", tokens[:, 1], (len(ids), steps))
    return _Words(spans_from_mask(f"{name}[:, 1]", mask, ids), steps)


def _sequences(
    where: str,
    split: Mapping[str, Any],
    name: str,
    key: str,
    words: _Words | None,
    ids: Sequence[str],
) -> list[NDArray[Any]]:
    """Return the real steps of one modality, which is found under the key."""
    place, x, lengths_key = f"{where}[{key!r}]", split[key], f"{name}_lengths"
    lengths = None
    if name == "text" and words is not None:
        lengths = words.spans.stop - words.spans.start
    elif lengths_key in split:
        lengths = read_lengths(f"{where}[{lengths_key!r}]", split[lengths_key], len(ids))
    if isinstance(x, list) or (isinstance(x, np.ndarray) and x.dtype.kind == "O"):
        return read_ragged(place, x, ids, lengths)
    x = _token_features(place, x, ids) if key == "text_bert" else read_padded(place, x, len(ids))
    if name == "text" and words is not None:
        if x.shape[1] != words.steps:
            raise ValueError(
                f"{place} must have {words.steps} steps, as many as 'text_bert', got {x.shape[1]}"
            )
        return cut(x, words.spans)
    extent = find_extent(x)
    spans = None
    if lengths is not None:
        spans = spans_from_lengths(place, lengths, extent, x.shape[1], ids)
    elif words is not None and x.shape[1] == words.steps:
        spans = spans_from_alignment(words.spans, extent)
    return cut(x, spans or spans_from_zeros(place, extent, x.shape[1], "right"))


def _token_features(name: str, tokens: NDArray[Any], ids: Sequence[str]) -> NDArray[np.float32]:
    """Return ``(n, 3, t)`` whole numbers as ``(n, t, 3)`` floats that hold them exactly."""
    tokens = tokens.astype(np.float64)
    wrong = ~((tokens >= 0) & (tokens < 2**24) & (tokens == np.floor(tokens)))
    if wrong.any():
        number, row, step = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{name} must hold whole numbers in [0, 2**24), got {tokens[number, row, step]} in "
            f"{sample_name(number, ids)}"
        )
    return tokens.transpose(0, 2, 1).astype(np.float32)
