"""What runs have in common, and how sure their differences are.

Two kinds of interval. :func:`compare` takes whole runs or splits for its units: it holds the luck
of the seed and, with several splits, of the samples. :func:`paired` draws seeds and samples anew,
so that it holds both with a single split; samples of one group, a video or a speaker, are drawn
together.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from runs import Run
from scipy import stats

sys.path.append(str(Path(__file__).parents[1]))
from measure import collect
from options import parts_of
from run_folder import from_json
from splits import Samples, load_splits
from task import Task

from tdmer import Sentiment
from tdmer.pretrained import Pretrained
from tdmer.tasks import from_config

# The figures of scores and of classes: the first is compared, and better where it is less or more.
SCORES = {"mae": "MAE", "corr": "r", "acc2_non0": "Acc2\nnon0"}
CLASSES = {"accuracy": "accuracy", "loss": "loss", "f1_weighted": "F1\nweighted"}
BRANCHES = {"best_branch": "best\nbranch", "mean_of_branches": "mean of\nbranches"}
DRAWS = 2000

Floats = NDArray[np.float64]


def summarize(runs: Sequence[Run], read: str) -> dict[str, Any]:
    """Return the figures of every run, and of every variant with its difference to the first."""
    rows = [
        {"variant": run.variant, "split": run.split, "seed": run.seed, **figures(run, read)}
        for run in runs
    ]
    names = list(dict.fromkeys(run.variant for run in runs))
    seeds = 1 + max(run.seed for run in runs)
    columns = (SCORES if "mae" in rows[0] else CLASSES) | BRANCHES
    main, unit = next(iter(columns)), "split" if len(runs) >= 4 * seeds * len(names) else "run"
    variants: dict[str, Any] = {}
    first = np.empty(0)
    for name in names:
        own = [row for row in rows if row["variant"] == name]
        column = {c: np.array([row[c] for row in own]).reshape(-1, seeds) for c in columns}
        # Runs are in the order of splits, then seeds.
        units = column[main].mean(axis=1) if unit == "split" else column[main].ravel()
        first = first if variants else units
        variants[name] = {
            "figures": {
                c: {"mean": float(x.mean()), "sd": deviation(x)} for c, x in column.items()
            },
            "difference": compare(units, first),
        }
    return {
        "read": read,
        "figure": main,
        "unit": unit,
        "units": len(first),
        "variants": variants,
        "runs": rows,
    }


def figures(run: Run, read: str) -> dict[str, float]:
    """Return the figures of a run; NaN for those of branches that it does not have."""
    results = [from_json(args.out / "metrics.json") for args in run.commands()]
    chosen, last = results[0], results[-1]
    found = dict(last[read])
    main, best = ("mae", min) if "mae" in found else ("accuracy", max)
    found |= dict.fromkeys(BRANCHES, math.nan) | {"step": chosen.get("step", math.nan)}
    if last.get("branches", {}).get(read):
        alone = chosen["branches"]["valid"]["alone"]
        branch = best(alone, key=lambda name: alone[name][main])
        found["best_branch"] = last["branches"][read]["alone"][branch][main]
        found["mean_of_branches"] = last["branches"][read]["mean"][main]
    return found


def deviation(values: Floats) -> float:
    """Return the standard deviation (ddof 1), NaN of a single value."""
    return float(values.std(ddof=1)) if values.size > 1 else math.nan


def compare(values: Floats, first: Floats) -> dict[str, float]:
    """Return the paired difference with its 95 % interval and p value, NaN where undefined."""
    difference = values - first
    found = {"mean": float(difference.mean()), "low": math.nan, "high": math.nan, "p": math.nan}
    if len(difference) < 2 or np.isnan(difference).any():
        return found
    interval = stats.bootstrap(
        (difference,), np.mean, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    test = stats.permutation_test(
        (values, first),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        random_state=np.random.default_rng(0),
    )
    return found | {
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
    }


class Answers(NamedTuple):
    """How a variant did on every sample that was tested, by seed."""

    values: Floats
    """Absolute error of a score, or 1 where the class is right and 0 where not, ``(s, n)``."""
    groups: list[tuple[str, Any]]
    """Which samples belong together, ``(n,)``."""


def answers(runs: Sequence[Run], read: str) -> Answers:
    """Return how the runs of one variant do on the labelled samples of their splits."""
    by_seed: dict[int, list[Floats]] = {}
    groups: list[tuple[str, Any]] = []
    for run in runs:
        args = run.commands()[0]
        model, task, samples = load_model(args.out)
        data = load_splits(args.data, **samples)[read]
        values, known = on_each_sample(model, task, data)
        by_seed.setdefault(run.seed, []).append(values)
        if run.seed == runs[0].seed:
            # A speaker that is tested in two splits is drawn for each.
            named = zip(data.groups, known, strict=True)
            groups += [(run.split, group) for group, labelled in named if labelled]
    return Answers(np.stack([np.concatenate(parts) for parts in by_seed.values()]), groups)


def load_model(folder: Path) -> tuple[Pretrained, Task, dict[str, Any]]:
    """Return the model of a run, whatever the system, its task, and how its data were dealt out."""
    config = json.loads((folder / "run.json").read_bytes())
    kind, _ = parts_of(config["training"].get("system", "tdmer"))
    samples = config["samples"] | {"modalities": from_json(folder / "metrics.json")["modalities"]}
    return kind.from_pretrained(folder), from_config(config["task"]), samples


def on_each_sample(
    model: torch.nn.Module, task: Task, data: Samples
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the error of a score or whether a class is right, and which samples are labelled."""
    outputs = collect(model, data)
    known = task.labelled(outputs.labels)
    predicted = task.predict(outputs.logits)[known].double()
    labels = outputs.labels[known].double()
    scores = isinstance(task, Sentiment)
    values = (predicted - labels).abs() if scores else (predicted == labels).double()
    return values.numpy(), known.numpy()


def paired(values: Floats, first: Floats, groups: Sequence[Any]) -> dict[str, float]:
    """Return the mean difference with its 95 % interval and p value, over seeds and samples.

    Both are drawn anew, with replacement, the seeds and the groups of samples for themselves. The
    p value is twice the share of draws on the other side of 0.

    Args:
        values: Of one variant, ``(s, n)``.
        first: Of another on the same samples.
        groups: Which samples belong together, ``(n,)``.
    """
    difference = values - first
    seeds, count = len(difference), difference.shape[1]
    member = np.unique(np.array([str(group) for group in groups]), return_inverse=True)[1]
    rng = np.random.default_rng(0)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds
    names = member.max() + 1
    of_samples = rng.multinomial(names, np.full(names, 1 / names), size=DRAWS)[:, member]
    drawn = np.einsum("rs,sn,rn->r", of_seeds, difference, of_samples, optimize=True)
    drawn = drawn / of_samples.sum(axis=1).clip(min=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    # The observed difference counts as a draw, so that p is never 0.
    least = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * least / (DRAWS + 1))
    assert count == len(member)
    mean = float(difference.mean())
    return {"mean": mean, "low": float(low), "high": float(high), "p": float(p)}


def differences(found: Mapping[str, Answers], first: str) -> dict[str, dict[str, float]]:
    """Return of every variant the paired difference to one of them, p corrected by Holm."""
    reference = found[first]
    gaps = {
        name: paired(own.values, reference.values, reference.groups)
        for name, own in found.items()
        if name != first
    }
    corrected = holm({name: gap["p"] for name, gap in gaps.items()})
    return {name: gap | {"p_holm": corrected[name]} for name, gap in gaps.items()}


def by_variant(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of every variant."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.variant, []).append(run)
    return found


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for their number, by Holm's step-down method."""
    corrected, greatest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        greatest = max(greatest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = greatest
    return corrected
