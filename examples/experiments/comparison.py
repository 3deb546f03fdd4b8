"""Compare every system of tdmer.baselines with TDMER: one recipe, as many trials, seeds and epochs.

    python examples/experiments/comparison.py --data runs/world --jobs 2
    python examples/experiments/comparison.py --data mosi.pkl --jobs 2

All other options are those of train.py and hold for every system. Each system has the same number
of trials, one seed each, on the grid of learning rate, dropout and width below, and keeps what was
best in validation. That is trained with all seeds, and the test split read once per run. The same
command goes on where it was killed.

``--out`` then holds comparison.csv, .md and .png: the figures with standard deviation; the error
with its 95 % bootstrap interval over seeds and samples; the difference to TDMER on the same seeds
and samples, with p corrected by Holm; the number of parameters; seconds per epoch; the most memory
of a process that does nothing else; and after how many seconds of training the validation figure
was as good as ``--threshold``, by default what half of the systems reach. Seconds are comparable
only where the machine did the same beside all runs. chosen.txt names the folders of the runs.
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from differences import (
    Answers,
    answers,
    by_variant,
    deviation,
    differences,
    figures,
    load_model,
    paired,
)
from matplotlib.figure import Figure
from runs import Run, add_options, execute_all, load_data, plan
from tables import gap, provenance, spread, table, write_csv, write_markdown

sys.path.append(str(Path(__file__).parents[1]))
from options import number
from run_folder import from_json, write

from tdmer.baselines import SYSTEMS

FIRST = "TDMER"
# What each system has by itself, and small steps away from it.
GRID = ("--lr 0.001", "--lr 0.002", "--dropout 0.2", "--lr 0.0005", "--width 32", "--dropout 0.6")
SCORES = {"mae": "MAE", "corr": "r", "acc7": "Acc7", "acc2_non0": "Acc2 non0", "f1_non0": "F1"}
CLASSES = {"accuracy": "accuracy", "f1_weighted": "F1 weighted", "f1_macro": "F1 macro"}
PLAIN = ("mae", "corr")  # which are no share of samples


def main() -> None:
    """Choose, train, measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="All other options are those of examples/train.py.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=Path, help="as train.py takes it; without it, synthetic data")
    add("--out", type=Path, default=Path("runs/comparison"), help="folder")
    add("--systems", nargs="+", choices=[*SYSTEMS], default=[*SYSTEMS], help="beside TDMER")
    add("--trials", type=number(int, 1, len(GRID) + 1), default=len(GRID), help="of the grid")
    add("--threshold", type=float, help="figure of the validation split to reach")
    add_options(parser, seeds=5)
    args, options = parser.parse_known_args()
    try:
        compare_systems(args, options)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"comparison.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("comparison.py: stopped; the same command goes on") from None


def compare_systems(args: argparse.Namespace, options: list[str]) -> None:
    """Try, choose in validation, train all seeds, and compare on the test split."""
    shared = [*(["--data", str(args.data)] if args.data else []), *options]
    systems = listed(args, shared)
    grid = GRID[: args.trials]
    trials = {
        f"{name}, {point}": f"{own} {point}" for name, own in systems.items() for point in grid
    }
    tried = plan(args, trials, shared, seeds=1)
    # The most memory of a process is that of all it did: what is read of it has its own.
    execute_all([run for run in tried if run.split == tried[0].split], args.jobs, fresh=True)
    execute_all(tried, args.jobs)
    best = {name: choose(name, grid, tried) for name in systems}

    finals = {name: trials[name] for name in best.values()}
    runs = plan(args, finals, shared)
    execute_all(runs, args.jobs)
    own = {name: by_variant(runs)[variant] for name, variant in best.items()}
    about = provenance([run for several in own.values() for run in several], "test", shared)
    about["chosen in validation of"] = list(grid)
    rows = measure(own, args.threshold)
    write_all(args.out / "comparison", rows, about, len(own[FIRST]))
    folders = "".join(f"{run.folder}\n" for several in own.values() for run in several)
    write(args.out / "chosen.txt", folders.encode())


def listed(args: argparse.Namespace, shared: Sequence[str]) -> dict[str, str]:
    """Return the options of every system, a unimodal one for each modality."""
    modalities = list(load_data(plan(args, {FIRST: ""}, shared, seeds=1)[0])["train"].dims)
    found = {FIRST: "--system tdmer"}
    for name in args.systems:
        if name == "unimodal":
            found |= {f"{m} alone": f"--system unimodal --modalities {m}" for m in modalities}
        elif name == "iccn" and "text" not in modalities:
            found[name] = f"--system iccn --anchor {modalities[0]}"
        else:
            found[name] = f"--system {name}"
    return found


def choose(name: str, grid: Sequence[str], tried: Sequence[Run]) -> str:
    """Return the variant of a system that was best in validation, on average over splits."""
    means = {}
    for point in grid:
        variant = f"{name}, {point}"
        found = [figures(run, "valid") for run in tried if run.variant == variant]
        main, sign = ("mae", -1) if "mae" in found[0] else ("accuracy", 1)
        means[variant] = sign * float(np.mean([entry[main] for entry in found]))
    return max(means, key=lambda variant: means[variant])


def measure(own: Mapping[str, list[Run]], threshold: float | None) -> list[dict[str, Any]]:
    """Return all that is known of every system, the best first."""
    found = {name: [figures(run, "test") for run in runs] for name, runs in own.items()}
    columns = SCORES if "mae" in found[FIRST][0] else CLASSES
    main, sign = next(iter(columns)), 1 if columns is SCORES else -1
    told = {name: answers(runs, "test") for name, runs in own.items()}
    gaps = differences(told, FIRST)
    curves = {name: [history(run, main) for run in runs] for name, runs in own.items()}
    if threshold is None:
        reached = {name: min(sign * min(sign * c) for c in many) for name, many in curves.items()}
        threshold = sign * float(np.median([sign * value for value in reached.values()]))
    rows = []
    for name, runs in own.items():
        row: dict[str, Any] = {"system": name, "options": runs[0].variant.split(", ", 1)[1]}
        for column in columns:
            values = np.array([entry[column] for entry in found[name]])
            row |= {column: float(values.mean()), f"{column}_sd": deviation(values)}
        row |= interval(told[name])
        difference = gaps.get(name, {})
        for end in ("mean", "low", "high", "p", "p_holm"):
            row[f"difference_{end}"] = difference.get(end, np.nan)
        model = load_model(runs[0].folder)[0]
        row["parameters"] = sum(x.numel() for x in model.parameters())
        seconds, row["peak_megabytes"] = clocked(runs)
        row["seconds_per_epoch"] = seconds
        hits = [np.flatnonzero(sign * curve <= sign * threshold) for curve in curves[name]]
        epochs = [hit[0] + 1 for hit in hits if len(hit)]
        row["threshold"] = threshold
        row["runs_that_reach_it"] = len(epochs)
        row["seconds_to_it"] = float(np.mean(epochs)) * seconds if epochs else np.nan
        rows.append(row)
    return sorted(rows, key=lambda row: sign * row[main])


def interval(told: Answers) -> dict[str, float]:
    """Return the 95 % interval of the compared figure, over seeds and samples."""
    found = paired(told.values, np.zeros_like(told.values), told.groups)
    return {end: found[end] for end in ("low", "high")}


def history(run: Run, figure: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a figure of the validation split after every epoch."""
    result = from_json(run.folder / "metrics.json")
    return np.array([row["valid"][figure] for row in result["history"]])


def clocked(runs: Sequence[Run]) -> tuple[float, float]:
    """Return the median seconds of an epoch, and the first run's most memory in megabytes."""
    clocks = [(run.folder / "clock.jsonl").read_text().splitlines() for run in runs]
    seconds = [json.loads(line)["seconds"] for lines in clocks for line in lines]
    return float(np.median(seconds)), max(json.loads(line)["peak"] for line in clocks[0]) / 2**20


def write_all(path: Path, rows: list[dict[str, Any]], about: dict[str, Any], runs: int) -> None:
    """Write the table and the picture, and print the table."""
    columns = SCORES if "mae" in rows[0] else CLASSES
    main = columns[next(iter(columns))]
    lines, costs = [], []
    for row in rows:
        difference = {end: row[f"difference_{end}"] for end in ("mean", "low", "high")}
        first = row["system"] == FIRST
        lines.append(
            [
                row["system"],
                *(
                    spread(row[column], row[f"{column}_sd"])
                    if column in PLAIN
                    else spread(100 * row[column], 100 * row[f"{column}_sd"], 1)
                    for column in columns
                ),
                "" if first else gap(difference),
                "" if first else f"{row['difference_p_holm']:.3f}",
            ]
        )
        reached = f"{row['seconds_to_it']:.1f} ({row['runs_that_reach_it']} of {runs})"
        costs.append(
            [
                row["system"],
                f"`{row['options']}`",
                f"{row['parameters']:,}",
                f"{row['seconds_per_epoch']:.2f}",
                f"{row['peak_megabytes']:.0f}",
                reached if row["runs_that_reach_it"] else "never",
            ]
        )
    headings = ["system", *columns.values(), f"difference in {main} to {FIRST} (95 %)", "p (Holm)"]
    threshold = f"s to {rows[0]['threshold']:.3f} in validation"
    of_costs = ["system", "chosen", "parameters", "s per epoch", "peak MB", threshold]
    title = f"{FIRST} and other systems, test split"
    note = (
        f"Mean ± standard deviation of {runs} run(s), accuracies and F1 in %; intervals are over "
        f"seeds and samples, and differences paired.\n\n{table(of_costs, costs)}"
    )
    write_csv(path.with_suffix(".csv"), rows, about)
    write_markdown(path.with_suffix(".md"), title, headings, lines, about, note)
    print(f"\n{title}\n\n{table(headings, lines)}\n{note}")
    content = io.BytesIO()
    draw(rows, main).savefig(content, format="png", dpi=110)
    write(path.with_suffix(".png"), content.getvalue())
    print(f"Picture: {path.with_suffix('.png')}")


def draw(rows: list[dict[str, Any]], main: str) -> Figure:
    """Draw the figure with its interval, the difference, and what a system costs, row by row."""
    figure = Figure(figsize=(9, 1.3 + 0.3 * len(rows)), layout="constrained")
    error, difference, seconds, parameters = figure.subplots(1, 4, sharey=True)
    places = range(len(rows))
    value = "mae" if "mae" in rows[0] else "accuracy"
    for axes, middle, low, high in (
        (error, value, "low", "high"),
        (difference, "difference_mean", "difference_low", "difference_high"),
    ):
        for place, row in enumerate(rows):
            own = row["system"] == FIRST
            axes.plot([row[low], row[high]], [place, place], color="0.35", linewidth=1.5)
            face = "black" if own else "white"
            axes.plot(row[middle], place, "o", color="black", markerfacecolor=face)
    difference.axvline(0, color="0.5", linestyle="--", linewidth=1)
    for place, row in enumerate(rows):
        own = row["system"] == FIRST
        seconds.barh(place, row["seconds_per_epoch"], 0.6, color="0.2" if own else "0.7")
        face = "black" if own else "white"
        parameters.plot(row["parameters"], place, "o", color="black", markerfacecolor=face)
    parameters.set_xscale("log")
    error.set_yticks(places, [row["system"] for row in rows], parse_math=False)
    error.set(xlabel=f"{main} (95 %)", ylim=(len(rows) - 0.5, -0.5))
    difference.set(xlabel=f"difference to {FIRST}")
    seconds.set(xlabel="seconds per epoch")
    parameters.set(xlabel="parameters")
    for axes in (error, difference, seconds, parameters):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    return figure


if __name__ == "__main__":
    main()
