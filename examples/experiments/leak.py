"""Add a modality that gives the labels away in training and is noise elsewhere; what helps?

    python examples/experiments/leak.py                   # synthetic data
    python examples/experiments/leak.py --data mosi.pkl   # with any option of train.py

Trains without that modality, with it, and with it under modality dropout (seeds.py says how runs go
on). Each model then predicts the test split twice: from all modalities, and from those that
validation keeps: a modality is left out of the input as long as validation is better without one.
Nothing of the test split is used to choose.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tdmer import TDMER
from tdmer.data import MultimodalDataset, write_store

sys.path.append(str(Path(__file__).parents[1]))
from measure import collect
from options import number
from predict import load_run
from run_folder import to_json, write
from seeds import train
from splits import Samples, load_splits
from task import Task, main_figure, metrics, standing

LEAK, WIDTH = "leak", 8


def main() -> None:
    """Make the data, train, choose on validation, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="All other options are those of examples/train.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, help="as train.py takes it, with splits of its own")
    parser.add_argument("--out", type=Path, default=Path("runs/leak"))
    parser.add_argument("--seeds", type=number(int, 1), default=1, help="how many (default: 1)")
    parser.add_argument("--modality-dropout", type=number(float, below=1), default=0.3)
    args, options = parser.parse_known_args()
    clean, store = load_splits(args.data), args.out / "data"
    args.out.mkdir(parents=True, exist_ok=True)
    # The same data make the same file; runs on other data do not go on.
    shutil.rmtree(store, ignore_errors=True)
    write_store(store, {name: leaking(name, data) for name, data in clean.items()})
    variants = {
        "without the leak": ["--modalities", *clean["train"].dims],
        "with it": [],
        "with it, modality dropout": ["--modality-dropout", str(args.modality_dropout)],
    }
    rows: list[dict[str, Any]] = []
    for name, own in variants.items():
        for seed in range(args.seeds):
            folder = args.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            train(folder, store, [*options, *own, "--seed", str(seed)])
            model, task, samples = load_run(folder)
            splits = load_splits(store, **samples)
            kept, test = keep(model, task, splits["valid"]), splits["test"]
            found = {"all": read(model, task, test), "chosen": read(model, task, test.only(kept))}
            rows.append({"variant": name, "seed": seed, "kept": kept, **found})
    write(args.out / "leak.json", to_json(rows))
    show(rows, main_figure(task))


def leaking(split: str, data: Samples) -> MultimodalDataset:
    """Return a split with a modality of one step: the label and a little noise, or another's."""
    rng = np.random.default_rng(["train", "valid", "test"].index(split))
    labels = data.labels.numpy()
    shown = labels if split == "train" else rng.permutation(labels)
    # Waves of the label, from which it can be read off whether it is a score or a class.
    features = np.cos(np.outer(shown, np.arange(1, WIDTH + 1) / WIDTH) - np.pi / 4)
    features += 0.05 * rng.normal(size=features.shape)
    sequences = [data[place].inputs for place in range(len(data))]
    inputs = {name: [x[name].numpy() for x in sequences] for name in data.dims}
    return MultimodalDataset(inputs | {LEAK: list(features[:, None])}, labels, data.ids)


def keep(model: TDMER, task: Task, valid: Samples) -> list[str]:
    """Return the modalities that are left when leaving out another no longer helps validation."""
    kept = list(valid.dims)
    while len(kept) > 1:
        smaller = [[name for name in kept if name != out] for out in kept]
        best = max(smaller, key=lambda names: standing(task, read(model, task, valid.only(names))))
        now, then = (standing(task, read(model, task, valid.only(x))) for x in (kept, best))
        if then <= now:
            break
        kept = best
    return kept


def read(model: TDMER, task: Task, data: Samples) -> dict[str, float]:
    """Return the metrics of a data set."""
    outputs = collect(model, data)
    return metrics(task, outputs.logits, outputs.labels)


def show(rows: list[dict[str, Any]], figure: str) -> None:
    """Print the figures of every run."""
    names = [figure, "acc2_non0"] if figure == "mae" else [figure]
    table = Table(title=f"Test split: {' / '.join(names)}")
    for heading in ("variant", "seed", "all modalities", "those kept", "kept by validation"):
        table.add_column(heading)
    for row in rows:
        cells = [" / ".join(f"{row[which][n]:.3f}" for n in names) for which in ("all", "chosen")]
        table.add_row(row["variant"], str(row["seed"]), *cells, " ".join(row["kept"]))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
