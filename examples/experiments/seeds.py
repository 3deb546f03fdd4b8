"""Train several seeds with examples/train.py, and say what they have in common.

    python examples/experiments/seeds.py                   # synthetic data
    python examples/experiments/seeds.py --data mosi.pkl   # with any option of train.py

Every seed has a folder of its own, a run of train.py. The same command goes on where it was cut
short, and trains no seed again that is finished; --overwrite starts anew.

The test split is read with the epoch of every seed that was best in validation: whole, and with
each modality left out. Nothing is chosen on it. Beside the folders of the seeds stand at last
metrics.json (every seed, the mean and standard deviation, and 95 % bootstrap intervals of the seed
that was best in validation), epochs.csv, and training.png with the epochs of that seed.
"""

import argparse
import csv
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from tdmer import TDMER, Sentiment
from tdmer.metrics import bootstrap_interval, classification_metrics
from tdmer.viz import training_curves

sys.path.append(str(Path(__file__).parents[1]))
from measure import Outputs, collect
from options import number
from predict import load_run
from run_folder import from_json, to_json, write
from splits import Samples, load_splits
from task import Task, metrics, standing

EXAMPLES = Path(__file__).parents[1]
COLUMNS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "f1_weighted": "F1 weighted",
    "f1_macro": "F1 macro",
    "mae": "MAE",
    "corr": "r",
    "acc7": "Acc7",
    "acc5": "Acc5",
    "acc2_non0": "Acc2 non0",
    "f1_non0": "F1 non0",
    "acc2_has0": "Acc2 has0",
    "f1_has0": "F1 has0",
}
PLAIN = ("loss", "mae", "corr")  # which are no share of samples


class Run(NamedTuple):
    """One seed: what train.py wrote, and what the test split says without each modality."""

    seed: int
    epoch: int
    step: int
    modalities: list[str]
    train: dict[str, float]
    valid: dict[str, float]
    test: dict[str, float]
    missing: dict[str, dict[str, float]]
    weights: dict[str, float]
    branches: dict[str, Any]
    history: list[dict[str, Any]]


def main() -> None:
    """Train, evaluate, write and show."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="All other options are those of examples/train.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=number(int, 1), default=3, help="how many (default: 3)")
    parser.add_argument("--data", type=Path, help="as train.py takes it")
    parser.add_argument("--out", type=Path, help="folder; by default runs/ and the data's name")
    args, options = parser.parse_known_args()
    out = args.out or Path("runs", args.data.stem if args.data else "synthetic")
    folders = [out / f"seed-{seed}" for seed in range(args.seeds)]
    for seed, folder in enumerate(folders):
        train(folder, args.data, [*options, "--seed", str(seed)])

    loaded = [load_run(folder) for folder in folders]
    task = loaded[0][1]
    tests = [load_splits(args.data, **samples)["test"] for *_, samples in loaded]
    results = [from_json(folder / "metrics.json") for folder in folders]
    runs = [
        Run(seed=seed, missing=without_each(model, task, data), **result)
        for seed, ((model, *_), data, result) in enumerate(zip(loaded, tests, results, strict=True))
    ]
    best = max(runs, key=lambda run: standing(task, run.valid))
    bounds = intervals(task, collect(loaded[best.seed][0], tests[best.seed]))
    summary = summarize(runs) | {"interval": {"seed": best.seed, "level": 0.95, "test": bounds}}
    write(out / "metrics.json", to_json(summary))
    write(out / "epochs.csv", epochs_csv(runs))
    picture = io.BytesIO()
    figure = training_curves(best.history, chosen=best.epoch)
    figure.savefig(picture, format="png", dpi=120)
    write(out / "training.png", picture.getvalue())
    show(summary)
    print(f"Seed {best.seed} is best in validation. Picture: {out / 'training.png'}")


def train(folder: Path, data: Path | None, options: list[str]) -> None:
    """Run train.py, or the rest of it."""
    command = [sys.executable, str(EXAMPLES / "train.py"), "--out", str(folder), *options]
    if data is not None:
        command += ["--data", str(data)]
    if "--overwrite" not in options:
        command.append("--resume")
    print(f"{folder}:", flush=True)
    failed = subprocess.run(command, check=False).returncode
    if failed:
        raise SystemExit(failed)


def without_each(model: TDMER, task: Task, data: Samples) -> dict[str, dict[str, float]]:
    """Return the metrics with each modality left out, if there are others."""
    found = {}
    for modality in data.dims if len(data.dims) > 1 else ():
        outputs = collect(model, data.only([name for name in data.dims if name != modality]))
        found[modality] = metrics(task, outputs.logits, outputs.labels)
    return found


def intervals(task: Task, outputs: Outputs) -> dict[str, tuple[float, float]]:
    """Return a 95 % bootstrap interval of every metric of the field."""
    predictions, labels = task.predict(outputs.logits), outputs.labels
    names = [name for name in metrics(task, outputs.logits, labels) if name != "loss"]
    if isinstance(task, Sentiment):
        return {name: bootstrap_interval(predictions, labels, metric=name) for name in names}
    rng = np.random.default_rng(0)
    draws = rng.integers(len(labels), size=(1000, len(labels)))
    found = [classification_metrics(predictions[draw], labels[draw]) for draw in draws]
    return {
        name: tuple(np.quantile([x[name] for x in found], [0.025, 0.975]).tolist())
        for name in names
    }


def summarize(runs: list[Run]) -> dict[str, Any]:
    """Return the mean and standard deviation (ddof 1) of every figure, and each seed's."""
    return {
        "test": over_seeds([run.test for run in runs]),
        "missing": {
            modality: over_seeds([run.missing[modality] for run in runs])
            for modality in runs[0].missing
            if all(modality in run.missing for run in runs)
        },
        "valid": over_seeds([run.valid for run in runs]),
        "weights": over_seeds([run.weights for run in runs]),
        "seeds": [
            {name: value for name, value in run._asdict().items() if name != "history"}
            for run in runs
        ],
    }


def over_seeds(figures: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation; NaN where a seed's is, and that of one seed."""
    summary = {}
    for name in figures[0]:
        column = np.array([figure[name] for figure in figures])
        sd = float(column.std(ddof=1)) if len(column) > 1 else math.nan
        summary[name] = {"mean": float(column.mean()), "sd": sd}
    return summary


def epochs_csv(runs: list[Run]) -> bytes:
    """One line per seed and epoch: training losses, validation metrics, fusion weights."""
    rows = []
    for run in runs:
        for row in run.history:
            weights = {f"weight_{branch}": weight for branch, weight in row["weights"].items()}
            start = {"seed": run.seed, "epoch": row["epoch"], "step": row["step"]}
            rows.append({**start, **row["train"], **row["valid"], **weights})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def show(summary: dict[str, Any]) -> None:
    """Print the test metrics of every seed, their mean, and the mean without each modality."""
    console = Console()
    seeds = summary["seeds"]
    table = Table(title=f"Test split, {len(seeds)} seed(s); accuracies and F1 in %")
    table.add_column("seed", no_wrap=True)
    columns = {name: heading for name, heading in COLUMNS.items() if name in seeds[0]["test"]}
    for heading in columns.values():
        table.add_column(heading, justify="right")

    def add(label: str, figures: dict[str, float], style: str | None = None) -> None:
        cells = [
            f"{figures[name]:.3f}" if name in PLAIN else f"{100 * figures[name]:.1f}"
            for name in columns
        ]
        table.add_row(label, *cells, style=style)

    def pick(figures: dict[str, dict[str, float]], which: str) -> dict[str, float]:
        return {name: entry[which] for name, entry in figures.items()}

    for run in seeds:
        add(str(run["seed"]), run["test"])
    table.add_section()
    add("mean", pick(summary["test"], "mean"), "bold")
    add("± sd", pick(summary["test"], "sd"))
    table.add_section()
    for modality, figures in summary["missing"].items():
        add(f"no {modality}", pick(figures, "mean"))
    console.print(table)
    weights = pick(summary["weights"], "mean")
    ranked = sorted(weights, key=lambda branch: -weights[branch])
    listed = ", ".join(f"{branch} {weights[branch]:.2f}" for branch in ranked)
    console.print(f"Mean fusion weights: {listed}")


if __name__ == "__main__":
    main()
