"""The data of the examples, dealt out into train, valid and test.

The file is one in MMSA's layout, a store, or an ``.npz`` of arrays; without a file the data are
synthetic. Samples of one group, a speaker or a video, belong together: but for the splits of the
file itself, which are taken as they are, no group is in two splits.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from tdmer.data import (
    MultimodalDataset,
    Sample,
    from_arrays,
    load_mmsa,
    make_synthetic,
    normalize_by_group,
    open_store,
)

SPLITS = ("train", "valid", "test")
# Ids of MMSA, MISA and MAG, and MulT: a video, and which clip of it.
VIDEO = re.compile(r"(.+?)(\$_\$.*|\[\d+\]|_\d+| [\d.]+ [\d.]+)")
RULE = re.compile(r"official|folds:(\d+)/(\d+)|random:(\d+)")
DRAWS = 1000  # of which the nearest to the wanted sizes is taken


@dataclass(frozen=True, eq=False)
class Samples(Dataset[Sample]):
    """Some samples of data that stay where they are, with some of the modalities.

    Attributes:
        source: Where a sample is read from when it is asked for, by its number there.
        numbers: Which samples, in order.
        dims: Modality name → feature width.
        lengths: Modality name → number of steps of every sample.
        labels: All labels.
        ids: All names.
        groups: The group of every sample.
        classes: Names of the classes that labels number; None: they have none.
    """

    source: Dataset[Sample]
    numbers: Sequence[int]
    dims: dict[str, int]
    lengths: dict[str, Tensor]
    labels: Tensor
    ids: list[str]
    groups: list[Any]
    classes: list[str] | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        sample = self.source[self.numbers[index]]
        return sample._replace(inputs={m: sample.inputs[m] for m in self.dims})

    def join(self, other: "Samples") -> "Samples":
        """Return these and others of the same source."""
        return replace(
            self,
            numbers=[*self.numbers, *other.numbers],
            lengths={m: torch.cat([x, other.lengths[m]]) for m, x in self.lengths.items()},
            labels=torch.cat([self.labels, other.labels]),
            ids=self.ids + other.ids,
            groups=self.groups + other.groups,
        )

    def take(self, places: Sequence[int]) -> "Samples":
        """Return the samples at these places."""
        chosen = torch.as_tensor(places, dtype=torch.int64)
        return replace(
            self,
            numbers=[self.numbers[place] for place in places],
            lengths={m: x[chosen] for m, x in self.lengths.items()},
            labels=self.labels[chosen],
            ids=[self.ids[place] for place in places],
            groups=[self.groups[place] for place in places],
        )

    def only(self, modalities: Sequence[str]) -> "Samples":
        """Return the samples with these modalities only."""
        if not modalities or not set(modalities) <= self.dims.keys():
            raise ValueError(f"modalities must be some of {list(self.dims)}, got {modalities}")
        kept = [m for m in self.dims if m in modalities]
        return replace(
            self,
            dims={m: self.dims[m] for m in kept},
            lengths={m: self.lengths[m] for m in kept},
        )


def load_splits(
    path: Path | None,
    *,
    label: str = "label",
    group: str | None = None,
    split: str = "official",
    modalities: Sequence[str] | None = None,
    normalize_groups: bool | Sequence[str] = False,
) -> dict[str, Samples]:
    """Return the splits of the data.

    Args:
        path: Pickle in MMSA's layout, store, or ``.npz``: the array ``label``, perhaps ``group``,
            and modalities ``(n, f)``, which is one step, or ``(n, t, f)``. None: synthetic data.
        label: Array of the labels in an ``.npz``.
        group: Array of the groups in an ``.npz``; else every sample is a group of its own. That of
            other files is the video in the id.
        split: ``official``, the splits of the file. ``folds:K/k``: of the sorted groups, every K-th
            from k on is tested on, those that follow them choose, and the rest trains.
            ``random:SEED``: groups dealt out at random, in the sizes of the file's own splits, or
            a half and two quarters where it has none.
        modalities: Those to keep; None: all.
        normalize_groups: Whether to standardise every feature within each group, or of which
            modalities, if they are kept: in a file with splits of its own, within the part of the
            group that is in each.

    Raises:
        OSError: There is no such file.
        ValueError: The file is none of these, or cannot be split so.
    """
    rule = RULE.fullmatch(split)
    if rule is None or (rule[1] and int(rule[1]) <= max(2, int(rule[2]))):
        ways = "official, folds:K/k with K at least 3 and k from 0 to K - 1, or random:SEED"
        raise ValueError(f"--split must be {ways}, got {split!r}")
    if path is not None and path.suffix == ".npz":
        sources, groups = _read_npz(path, label, group, modalities)
    else:
        sources = _read(path)
        groups = [_group(name, x) for name, data in sources.items() for x in data.ids]
    bounds = np.cumsum([0, *map(len, sources.values())])
    if normalize_groups:
        chosen = modalities
        if not isinstance(normalize_groups, bool):
            chosen = [m for m in normalize_groups if modalities is None or m in modalities]
        parts = zip(sources.items(), pairwise(bounds), strict=True)
        sources = {
            name: normalize_by_group(x, groups[a:b], modalities=chosen)
            for (name, x), (a, b) in parts
        }
    pool = _pool(path, sources, groups)
    pool = pool if modalities is None else pool.only(modalities)
    own = dict(zip(sources, np.split(np.arange(len(pool)), bounds[1:-1]), strict=True))
    if split == "official":
        if len(own) == 1 and "" in own:
            raise ValueError(f"{path} has no splits: --split folds:4/0 or random:0 makes some")
        return {name: pool.take(places.tolist()) for name, places in own.items()}
    names, members, sizes = np.unique(_numbers(groups), return_inverse=True, return_counts=True)
    if rule[1]:
        many, which = int(rule[1]), int(rule[2])
        turn = (np.arange(len(names)) - which) % many
        part = np.select([turn == 0, turn == 1], [2, 1], 0)
    else:
        wanted = [len(own[name]) for name in SPLITS] if set(SPLITS) <= own.keys() else [2, 1, 1]
        part = _deal(sizes, wanted, int(rule[3]))
    if len(np.unique(part)) < len(SPLITS):
        raise ValueError(f"{path} must have more groups for --split {split}, got {len(names)}")
    return {
        name: pool.take(np.flatnonzero(part[members] == number).tolist())
        for number, name in enumerate(SPLITS)
    }


def shared_groups(splits: Mapping[str, Samples]) -> list[Any]:
    """Return the groups that are in more than one split."""
    counts = Counter(group for data in splits.values() for group in set(data.groups))
    return [group for group, count in counts.items() if count > 1]


def fingerprint(path: Path | None) -> dict[str, str]:
    """Return the SHA-256 of every file of the data, so that other data are told apart."""
    if path is None:
        return {"synthetic": "make_synthetic"}
    found = {}
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        with part.open("rb") as file:
            found[part.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_extractor(path: Path | None) -> Any:
    """Return what made the features of a store of recordings, which its models are saved with."""
    about = None if path is None else path / "recordings.json"
    return json.loads(about.read_bytes())["extractor"] if about and about.is_file() else None


def _read(path: Path | None) -> Mapping[str, MultimodalDataset]:
    if path is None:
        world = make_synthetic({"train": 800, "valid": 200, "test": 400}, missing=0.1)
        return {split: drawn.dataset for split, drawn in world.items()}
    return open_store(path) if path.is_dir() else load_mmsa(path)


def _read_npz(
    path: Path, label: str, group: str | None, modalities: Sequence[str] | None
) -> tuple[Mapping[str, MultimodalDataset], list[Any]]:
    """Return the data, which are no split, and the group of every sample."""
    arrays: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content}
        except Exception as error:
            # Whatever a damaged file makes of these lines, it is the file that is to be named.
            raise ValueError(f"{path} must be a whole npz of plain arrays, got {error!r}") from None
    special = [label] if group is None else [label, group]
    missing = [name for name in [*special, *(modalities or [])] if name not in arrays]
    if missing:
        raise ValueError(f"{path} must have the arrays {missing}, got {list(arrays)}")
    labels = arrays[label]
    groups = np.arange(len(labels)) if group is None else arrays[group]
    if groups.shape != labels.shape[:1] or groups.dtype.kind not in "iuUS":
        raise ValueError(f"{path}, {group!r} must be a name or whole number per sample")
    names = [name for name in modalities or arrays if name not in special]
    inputs = {m: x[:, None] if x.ndim == 2 else x for m, x in ((m, arrays[m]) for m in names)}
    # A single step is real, zeros as well.
    steps = {m: np.ones(len(x), int) for m, x in inputs.items() if x.shape[1:2] == (1,)}
    try:
        data = from_arrays(inputs, labels, lengths=steps)
    except (TypeError, ValueError) as error:
        advice = "--label, --group and --modalities say what is what"
        raise type(error)(f"{path}: {error}; {advice}") from None
    return {"": data}, groups.tolist()


def _group(split: str, name: str) -> str:
    """Return the video of an id, or a group of its own: numbers start anew in every split."""
    video = VIDEO.fullmatch(name)
    return video[1] if video else f"{split} {name}"


def _numbers(groups: list[Any]) -> NDArray[np.int64]:
    """Number groups in their order."""
    order = {group: number for number, group in enumerate(sorted(set(groups)))}
    return np.array([order[group] for group in groups])


def _pool(
    path: Path | None, sources: Mapping[str, MultimodalDataset], groups: list[Any]
) -> Samples:
    """Return all samples of all splits."""
    first = next(iter(sources.values()))
    kinds = {
        name: (data.dims, data.labels.dtype, data.labels.shape[1:], data.classes)
        for name, data in sources.items()
    }
    if any(kind != kinds[next(iter(kinds))] for kind in kinds.values()):
        raise ValueError(f"{path} must have the same modalities and kind of labels in all splits")
    return Samples(
        ConcatDataset(sources.values()),
        range(len(groups)),
        first.dims,
        {m: torch.cat([data.lengths[m] for data in sources.values()]) for m in first.dims},
        torch.cat([data.labels for data in sources.values()]),
        [x for data in sources.values() for x in data.ids],
        groups,
        first.classes,
    )


def _deal(sizes: NDArray[np.int64], wanted: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Return the number of a split for every group, of many random deals the nearest in size."""
    rng = np.random.default_rng(seed)
    goal = np.cumsum(wanted) / sum(wanted) * sizes.sum()
    best, least = np.zeros(len(sizes), np.int64), np.inf
    for _ in range(DRAWS):
        order = rng.permutation(len(sizes))
        ends = np.cumsum(sizes[order])
        # A group is dealt to the split in which its middle lies.
        part = np.empty(len(sizes), np.int64)
        part[order] = np.searchsorted(goal, ends - sizes[order] / 2, side="right")
        found = np.bincount(part, sizes, minlength=len(wanted))
        off = np.abs(found - np.diff(goal, prepend=0)).sum()
        if off < least:
            best, least = part, off
    return best
