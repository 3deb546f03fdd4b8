"""What the readers share: the splits of a file, and data sets of them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from tdmer.data.dataset import MultimodalDataset, check_present, kind, sample_name
from tdmer.data.store import check_new_store, open_store, write_store

_SPLITS = ("train", "valid", "test")

Range = tuple[float, float] | None
Path = str | os.PathLike[str]


class Columns(NamedTuple):
    """One split as a reader found it, before anything is checked or copied.

    Attributes:
        name: how messages name the split.
        inputs: modality name → one ``(t_i, f)`` array per sample, such as views of a padded array.
        labels: ``(n,)`` or ``(n, k)`` numbers.
        ids: one name per sample.
    """

    name: str
    inputs: dict[str, Sequence[Any]]
    labels: Any
    ids: Iterable[Any]


def check_options(label_range: Range, store: Path | None) -> None:
    """Raise, before a file is read, unless the options that all readers share are right."""
    if store is not None:
        check_new_store(store)
    if label_range is not None and not (len(label_range) == 2 and label_range[0] < label_range[1]):
        raise ValueError(f"label_range must be two numbers, the lower first, got {label_range!r}")


def build(
    name: str, splits: Mapping[str, Columns], label_range: Range, store: Path | None
) -> dict[str, MultimodalDataset]:
    """Make the data sets of a file, in memory or in a store, once its splits fit each other."""
    make = MultimodalDataset if store is None else MultimodalDataset._of_views
    datasets, forms = {}, {}
    for split, columns in splits.items():
        try:
            data = make(columns.inputs, columns.labels, columns.ids)
            check_present(data)
            _check_range(data, label_range)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{columns.name}: {error}") from error
        data.labels = data.labels.float()
        datasets[split] = data
        forms[split] = data.dims | {"labels": tuple(data.labels.shape[1:])}
    (first, form), *others = forms.items()
    for split, other in others:
        if other != form:
            raise ValueError(
                f"{name} must have the same modalities, widths and labels in all splits, "
                f"got {form} in {first!r} and {other} in {split!r}"
            )
    if store is None:
        return datasets
    write_store(store, datasets)
    return open_store(store)


def _check_range(data: MultimodalDataset, label_range: Range) -> None:
    if label_range is None:
        return
    low, high = label_range
    wrong = ((data.labels < low) | (data.labels > high)).nonzero()
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f"labels must be in [{low:g}, {high:g}] or NaN, got {data.labels[place]:g} in "
            f"{sample_name(place[0], data.ids)}; correct it, or widen label_range"
        )


def read_splits(name: str, content: Any, *keys: str) -> dict[str, Mapping[str, Any]]:
    """Return the splits of a file that keeps them as dicts with keys, in the order of training."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{name} must be a dict of {list(_SPLITS)}, got {kind(content)}")
    for split, value in content.items():
        if split not in _SPLITS:
            raise ValueError(f"{name} must have splits of {list(_SPLITS)} only, got {split!r}")
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}[{split!r}] must be a dict of arrays, got {kind(value)}")
        lacking = [key for key in keys if key not in value]
        if lacking:
            got = sorted(map(str, value))
            raise ValueError(f"{name}[{split!r}] must have the key {lacking[0]!r}, got {got}")
    return {split: content[split] for split in _SPLITS if split in content}


def check_alike(name: str, splits: Mapping[str, Mapping[str, Any]], *keys: str) -> None:
    """Raise where a key is in some splits only: they would be read by different rules."""
    for key in keys:
        having = [split for split, content in splits.items() if key in content]
        if having and len(having) < len(splits):
            rule = f"have {key!r} in all splits or in none"
            raise ValueError(f"{name} must {rule}, got it in {having} of {list(splits)}")


def find_modalities(split: Mapping[str, Any], text: str = "text") -> dict[str, str]:
    """Return modality → its key in the file, of those that a split has."""
    keys = {"text": text, "audio": "audio", "video": "vision"}
    return {modality: key for modality, key in keys.items() if key in split}


def check_lengths(name: str, column: Iterable[Any], lengths: Iterable[Any]) -> None:
    """Raise unless every sequence of a column has the steps that the file declares."""
    for number, (x, steps) in enumerate(zip_longest(column, lengths)):
        if np.shape(x)[:1] != (steps,):
            raise ValueError(f"{name}[{number}] must have {steps} declared steps, got {kind(x)}")
