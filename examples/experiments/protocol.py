"""Compare variants over several splits and seeds, with the uncertainty of every difference.

    python examples/experiments/protocol.py --data emotions.npz --label emotion --group actor \
        --split folds:4 --seeds 3 --out runs/emotions --variant "default" \
        --variant "no attention: --layers 0" --variant "logistic regression: sklearn"

A variant is a name and options of train.py; or ``sklearn``, with a name that begins with
``logistic regression``, ``svm``, ``mlp`` or, for scores, ``ridge`` (baselines.py). Options that are
not listed below are train.py's, and hold for all variants. ``--split`` takes several;
``folds:4`` stands for all four. Every run is one of train.py, in a folder of its own below
``--out``: the same command goes on where it was cut short, and trains nothing again that is
finished.

The figures that are read, written and shown are those of the validation split, by which variants
may be chosen. ``--read test`` reads the test split instead: once, when everything is chosen.
``--refit`` does so, too, after each run was trained again on train and valid together, for as many
steps as it had chosen. The best branch is always the one that was best in validation.

Differences are to the first variant, paired by split and seed: the mean, a 95 % bootstrap interval,
and the p value of a permutation test. With four splits or more the unit is a split, for seeds of
one split share its samples; with fewer it is a run, and the interval says nothing of other samples.
Of n units no p value is below 2 / 2^n, 0.125 of four.
The table stands in valid.csv (test.csv, refit.csv), and with every run in valid.json.
"""

import argparse
import contextlib
import csv
import io
import math
import multiprocessing
import re
import shlex
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate.state import AcceleratorState, GradientState
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

sys.path.append(str(Path(__file__).parents[1]))
from options import number, parse_args
from run_folder import from_json, to_json, write
from train import train

# The figures of scores and of classes: the first is compared, and better where it is less or more.
SCORES = {"mae": "MAE", "corr": "r", "acc2_non0": "Acc2\nnon0"}
CLASSES = {"accuracy": "accuracy", "loss": "loss", "f1_weighted": "F1\nweighted"}
BRANCHES = {"best_branch": "best\nbranch", "mean_of_branches": "mean of\nbranches"}


class Run(NamedTuple):
    """A variant with one split and one seed."""

    variant: str
    split: str
    seed: int
    folder: Path
    options: list[str]
    refit: bool
    baseline: bool

    def commands(self) -> list[argparse.Namespace]:
        """Return the options of train.py: of the run, and of its refit if there is one."""
        own = [*self.options, "--split", self.split, "--seed", str(self.seed), "--resume"]
        places = [["--out", str(self.folder)]]
        if self.refit:
            places.append(["--out", f"{self.folder}-refit", "--refit", str(self.folder)])
        return [parse_args(__doc__, own + place) for place in places]


def main() -> None:
    """Train, compare, write and show."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="All other options are those of examples/train.py.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--variant", action="append", required=True, metavar="NAME: OPTIONS", help="several")
    add("--split", nargs="+", default=["official"], help="as train.py takes them, or folds:K")
    add("--seeds", type=number(int, 1), default=3, help="how many (default: 3)")
    add("--out", type=Path, required=True, help="folder")
    add("--jobs", type=number(int, 1), default=1, help="runs at a time (default: 1)")
    add("--read", choices=["valid", "test"], default="valid", help="figures (default: valid)")
    add("--refit", action="store_true", help="train again on train and valid, and read test")
    args, options = parser.parse_known_args()
    try:
        runs = list(plan(args, options))
        execute_all(runs, args.jobs)
        summary = summarize(runs, "test" if args.refit else args.read)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"protocol.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("protocol.py: stopped; the same command goes on") from None
    name = "refit" if args.refit else args.read
    write(args.out / f"{name}.json", to_json(summary))
    write(args.out / f"{name}.csv", to_csv(summary))
    show(summary, name)


def plan(args: argparse.Namespace, options: list[str]) -> Iterable[Run]:
    """Yield every run, and check its options before any of them starts."""
    splits = [split for text in args.split for split in expand(text)]
    variants = {}
    for text in args.variant:
        name, _, own = text.partition(":")
        variants[name.strip()] = shlex.split(own)
    if len({slug(name) for name in variants}) < len(args.variant):
        raise ValueError(f"--variant must have names of their own, got {args.variant}")
    for name, own in variants.items():
        baseline = own[:1] == ["sklearn"]
        for split in splits:
            for seed in range(args.seeds):
                folder = args.out / slug(name) / slug(split) / f"seed-{seed}"
                run = Run(
                    name, split, seed, folder, [*options, *own[baseline:]], args.refit, baseline
                )
                run.commands()
                yield run


def expand(split: str) -> list[str]:
    """Return all folds of ``folds:K``, and any other split as it is."""
    folds = re.fullmatch(r"folds:(\d+)", split)
    return [f"{split}/{fold}" for fold in range(int(folds[1]))] if folds else [split]


def slug(name: str) -> str:
    """Return a name as that of a folder."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def execute_all(runs: list[Run], jobs: int) -> None:
    """Do what is left of every run."""
    if jobs == 1:
        for done, run in enumerate(runs, 1):
            execute(run)
            print(f"{done} of {len(runs)}: {run.folder}", flush=True)
        return
    # A process that is forked could not use an accelerator.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            for done, run in enumerate(pool.map(execute, runs), 1):
                print(f"{done} of {len(runs)}: {run.folder}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def execute(run: Run) -> Run:
    """Do what is left of a run. What it says goes nowhere: it speaks of the test split."""
    for args in run.commands():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if run.baseline:
                    from baselines import fit  # scikit-learn is needed only here

                    fit(run.variant, args)
                else:
                    train(args)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{args.out}: {error}") from None
        finally:
            # The next run may have another precision.
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    return run


def summarize(runs: list[Run], read: str) -> dict[str, Any]:
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


def deviation(values: NDArray[np.float64]) -> float:
    """Return the standard deviation (ddof 1), NaN of a single value."""
    return float(values.std(ddof=1)) if values.size > 1 else math.nan


def compare(values: NDArray[np.float64], first: NDArray[np.float64]) -> dict[str, float]:
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


def to_csv(summary: dict[str, Any]) -> bytes:
    """One line per variant."""
    text = io.StringIO(newline="")
    rows = []
    for name, variant in summary["variants"].items():
        row = {"variant": name}
        for column, entry in variant["figures"].items():
            row |= {column: entry["mean"], f"{column}_sd": entry["sd"]}
        rows.append(row | {f"difference_{end}": x for end, x in variant["difference"].items()})
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def show(summary: dict[str, Any], name: str) -> None:
    """Print the table."""
    what = {
        "valid": "Validation split",
        "test": "Test split",
        "refit": "Test split, trained on train and valid",
    }[name]
    headings, first = SCORES | CLASSES | BRANCHES, next(iter(summary["variants"]))
    main, unit = summary["figure"], summary["unit"]
    of_unit = "means over seeds by split" if unit == "split" else "single runs"
    runs = len(summary["runs"]) // len(summary["variants"])
    table = Table(
        title=f"{what}: mean ± sd of {runs} run(s)",
        caption=f"Difference to the first variant in {headings[main]}, over {summary['units']} "
        f"{of_unit}: mean, 95 % bootstrap interval, p of a permutation test.",
    )
    table.add_column("variant")
    for column in summary["variants"][first]["figures"]:
        table.add_column(headings[column], justify="right", no_wrap=True)
    for heading in ("difference", "95 %", "p"):
        table.add_column(heading, justify="right", no_wrap=True)

    def cell(figure: str, mean: float, sd: float) -> str:
        spread = f" ± {sd:.3f}" if figure == main else ""
        return "" if math.isnan(mean) else f"{mean:.3f}{spread}"

    for variant, entry in summary["variants"].items():
        cells = [cell(figure, **found) for figure, found in entry["figures"].items()]
        gap = entry["difference"]
        if variant != first:
            interval = f"{gap['low']:+.3f} to {gap['high']:+.3f}"
            cells += [f"{gap['mean']:+.3f}", interval, f"{gap['p']:.3f}"]
        table.add_row(variant, *cells)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)


if __name__ == "__main__":
    main()
