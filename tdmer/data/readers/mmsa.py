"""The reader for MMSA's pickles (CMU-MOSI, CMU-MOSEI, CH-SIMS)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_choice
from tdmer.data.dataset import MultimodalDataset, as_features, kind
from tdmer.data.readers import _columns, _pads
from tdmer.data.readers._pickle import load_pickle


def load_mmsa(
    path: str | os.PathLike[str],
    *,
    text: str = "text",
    labels: str | Sequence[str] = "regression_labels",
    label_range: tuple[float, float] | None = (-3.0, 3.0),
    pads: str = "detect",
    store: str | os.PathLike[str] | None = None,
) -> dict[str, MultimodalDataset]:
    """Read a pickle in MMSA's layout, aligned or not, without its pads.

    The file is a dict of ``train``, ``valid`` and ``test``, each a dict of ``text``, ``audio`` and
    ``vision`` (``(n, t, f)``, padded with zeros, or a list of ``(t_i, f)``), ``regression_labels``
    and ``id``. One split and one modality are enough. It is read by :func:`load_pickle`, which runs
    no code.

    The real steps of a modality are

    - of text: those of the attention mask, row 1 of ``text_bert``;
    - of the others: as many as ``audio_lengths`` and ``vision_lengths`` say, on that side of the
      sample where nothing but zeros lies outside;
    - without lengths, where the arrays have as many steps as the mask and no value outside of it:
      they are aligned to the words, and their real steps are those of the mask. Zeros at a real
      word are data; a sample of zeros only lacks the modality;
    - else all but the zeros at that end of the time axis where more than twice as many samples
      have zeros as at the other; the right where neither has.

    One rule, and one side, is taken for all splits of a modality. Zeros within a sequence are kept,
    and NaN and ±inf entries stay as they are. A sequence of no real step means that the modality is
    missing.

    Args:
        path: the file.
        text: ``"text"``, or ``"text_bert"``: modality ``text`` has three features, the token id,
            attention mask and token type, as floats that hold them exactly.
        labels: the key of the labels, or several: then labels are ``(n, k)``, one column per key,
            such as ``("regression_labels", "regression_labels_T")`` of CH-SIMS.
        label_range: labels outside are an error; None: any finite number will do.
        pads: where steps of zeros are pads, as in :func:`from_arrays`, in place of the last two
            rules; ``"both"`` for files whose samples are padded on either side.
        store: a new folder to write the samples to and read them from; None: in memory.

    Returns:
        Split name → data set with those of the modalities ``text``, ``audio`` and ``video``
        (``vision`` in the file) that the file has, float32 labels (NaN where missing) and the ids
        of the file.

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
    _columns.check_options(label_range, store)
    check_choice("pads", pads, _pads.PADS)
    keys = [labels] if isinstance(labels, str) else list(labels)
    where, splits = os.fspath(path), {}
    contents = _columns.read_splits(where, load_pickle(path), "id", *keys)
    found = _inputs(where, contents, text, pads)
    _columns.check_alike(where, contents, "text_bert", "audio_lengths", "vision_lengths")
    for split, inputs in found.items():
        name, content = f"{where}[{split!r}]", contents[split]
        splits[split] = _columns.Columns(name, inputs, _labels(name, content, keys), content["id"])
    return _columns.build(where, splits, label_range, store)


def _labels(name: str, split: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return one column per key; of a single one no second axis."""
    try:
        table = np.column_stack([split[key] for key in keys])
    except ValueError as error:
        raise ValueError(f"{name} must have one label per sample in each of {keys}") from error
    return table[:, 0] if table.shape[1] == 1 else table


def _inputs(
    where: str, contents: Mapping[str, Mapping[str, Any]], text: str, pads: str
) -> dict[str, dict[str, Sequence[Any]]]:
    """Return the real steps of the modalities that each split has."""
    inputs: dict[str, dict[str, Sequence[Any]]] = {split: {} for split in contents}
    # Modality → split → arrays of which the file says nothing: one rule for all splits.
    untold: dict[str, dict[str, NDArray[Any]]] = {}
    aligned: dict[str, list[_pads.Spans | None]] = {}
    for split, content in contents.items():
        name = f"{where}[{split!r}]"
        tokens, words = _words(f"{name}['text_bert']", content.get("text_bert"))
        for modality, key in _columns.find_modalities(content, text).items():
            place, lengths = f"{name}[{key!r}]", content.get(f"{key}_lengths")
            x = tokens if key == "text_bert" else content[key]
            if isinstance(x, list) or (isinstance(x, np.ndarray) and x.dtype.kind == "O"):
                if modality == "text" and words is not None:
                    lengths = words.stop - words.start
                inputs[split][modality] = list(x)
                if lengths is not None:
                    _columns.check_lengths(place, x, lengths)
                continue
            x = as_features(place, x, "(n, t, f)")
            same = words if tokens is not None and x.shape[:2] == tokens.shape[:2] else None
            if modality == "text" and words is not None:
                if same is None:
                    raise ValueError(f"{place} must have the steps of 'text_bert', got {kind(x)}")
                spans = same
            elif lengths is not None:
                spans = _pads.spans_from_lengths(f"{name}['{key}_lengths']", lengths, x)
            else:
                untold.setdefault(modality, {})[split] = x
                aligned.setdefault(modality, []).append(_pads.spans_from_alignment(same, x))
                inputs[split][modality] = ()  # In its place, until all splits are known.
                continue
            inputs[split][modality] = _pads.cut(x, spans)
    for modality, arrays in untold.items():
        found = [spans for spans in aligned[modality] if spans is not None]
        if pads != "detect" or len(found) < len(arrays):
            found = _pads.spans_from_zeros(modality, list(arrays.values()), pads, "right")
        for (split, x), spans in zip(arrays.items(), found, strict=True):
            inputs[split][modality] = _pads.cut(x, spans)
    return inputs


def _words(name: str, tokens: Any) -> tuple[NDArray[Any] | None, _pads.Spans | None]:
    """Return token id, attention mask and token type of every step, and the real steps."""
    if tokens is None:
        return None, None
    tokens = as_features(name, tokens, "(n, 3, t)").swapaxes(1, 2)
    if tokens.shape[2] != 3:
        raise ValueError(f"{name} must be (n, 3, t) numbers, got {kind(tokens.swapaxes(1, 2))}")
    return tokens, _pads.spans_from_mask(f"{name}[:, 1]", tokens[..., 1], tokens)
