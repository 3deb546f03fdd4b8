"""What data sets hold, and what is wrong with them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from tdmer.data.dataset import MultimodalDataset


def describe(datasets: Mapping[str, MultimodalDataset] | MultimodalDataset) -> str:
    """Report what data sets hold: samples, labels, widths, lengths, damage, duplicates, leaks.

    Every sample is read once, and no more than one is held.

    Args:
        datasets: split name → data set, as a reader returns them; or one, which is called "data".

    Returns:
        One line per split and one per modality in it, followed by what is wrong, if anything.
        That is missing modalities and labels; NaN and ±inf entries, among these the finite ones
        beyond float32; features that are 0 in every step; ids that occur twice; samples of equal
        content under different ids; the same between splits (leakage).

    Example:
        >>> import numpy as np
        >>> audio = np.array([[[1.0], [np.nan]], [[2.0], [3.0]]], np.float32)
        >>> print(describe({"train": MultimodalDataset({"audio": audio}, labels=[-1.0, 2.0])}))
        train: 2 samples, labels -1 to 2 (1 negative, 0 zero, 1 positive)
          audio: 1 features, 2/2/2 steps (min/median/max), 1 NaN
    """
    if isinstance(datasets, MultimodalDataset):
        datasets = {"data": datasets}
    lines: list[str] = []
    contents: dict[str, dict[bytes, set[str]]] = {}
    for split, data in datasets.items():
        lines.append(f"{split}: {len(data)} samples, {_describe_labels(data)}")
        described, contents[split] = _describe_steps(data)
        twice = [name for name, count in Counter(data.ids).items() if count > 1]
        steps = torch.stack(list(data.lengths.values())).sum(dim=0)
        empty = [data.ids[number] for number in (steps == 0).nonzero()]
        equal = sorted(sorted(ids) for ids in contents[split].values() if len(ids) > 1)
        lines += described + _found(
            "  ",
            ("ids occur more than once", twice),
            ("samples have no modality", empty),
            ("samples are there under several ids", equal),
        )
    for one, other in combinations(datasets, 2):
        shared = set(datasets[one].ids) & set(datasets[other].ids)
        pairs = [
            (min(ids), min(contents[other][content] - ids))
            for content, ids in contents[one].items()
            if contents[other].get(content, ids) - ids
        ]
        lines += _found(
            f"{one} and {other} share ",
            ("ids", sorted(shared)),
            ("samples under different ids", sorted(pairs)),
        )
    return "\n".join(lines)


def _found(start: str, *kinds: tuple[str, Sequence[Any]]) -> list[str]:
    """Return one line for each kind of which there are some, with the first as an example."""
    return [f"{start}{len(x)} {text}, such as {x[0]!r}" for text, x in kinds if x]


def _describe_labels(data: MultimodalDataset) -> str:
    labels, names = data.labels, data.classes
    # The two ways to say that a label is missing: NaN, and -100 for a class.
    missing = labels.isnan() | (labels == -100)
    known = labels[~missing]
    parts = []
    if len(known):
        span = f"{known.min():g} to {known.max():g}"
        if names is not None:
            # Those that no sample has, too.
            counts = Counter(known.tolist())
            span = ", ".join(f"{name}: {counts[label]}" for label, name in enumerate(names))
        elif labels.ndim == 1 and labels.is_floating_point() and known.min() < 0:
            signs = [int((known.sign() == sign).sum()) for sign in (-1, 0, 1)]
            span += " ({} negative, {} zero, {} positive)".format(*signs)
        elif labels.ndim == 1 and not labels.is_floating_point():
            counts = Counter(known.tolist())
            if len(counts) <= 10:
                span += f" ({', '.join(f'{label}: {counts[label]}' for label in sorted(counts))})"
        parts.append(span)
    if missing.any():
        parts.append(f"{int(missing.sum())} missing")
    return "labels " + ", ".join(parts)


def _describe_steps(data: MultimodalDataset) -> tuple[list[str], dict[bytes, set[str]]]:
    """Return one line per modality, and hash of the content → ids of the samples that have it."""
    counts = {name: Counter[str]() for name in data.dims}
    zero = {name: np.ones(width, bool) for name, width in data.dims.items()}
    contents: dict[bytes, set[str]] = {}
    for index in range(len(data)):
        sample = data[index]
        digest = hashlib.blake2b(digest_size=16)
        for name, x in sample.inputs.items():
            values = x.numpy()
            digest.update(len(values).to_bytes(8, "little"))
            digest.update(values.data)
            zero[name] &= ~values.any(axis=0)
            if not np.isfinite(values).all():
                counts[name]["nan"] += int(np.isnan(values).sum())
                counts[name]["infinite"] += int(np.isinf(values).sum())
        if any(map(len, sample.inputs.values())):
            contents.setdefault(digest.digest(), set()).add(sample.id)
    lines = []
    for name, steps in data.lengths.items():
        found = {
            "missing in {}": int((steps == 0).sum()),
            "{} NaN": counts[name]["nan"],
            "{} infinite": counts[name]["infinite"],
            "{} of them beyond float32": data.overflows.get(name, 0),
            "{} features always 0": int(zero[name].sum()),
        }
        lines.append(
            f"  {name}: {data.dims[name]} features, "
            f"{steps.min()}/{steps.median()}/{steps.max()} steps (min/median/max)"
            + "".join(", " + text.format(count) for text, count in found.items() if count)
        )
    return lines, contents
