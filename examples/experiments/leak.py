"""Add a modality that gives the labels away in training and is noise elsewhere; what helps?

    python examples/experiments/leak.py                   # synthetic data
    python examples/experiments/leak.py --data mosi.pkl   # with any option of train.py

Trains without that modality; with it; with it under modality dropout; so that validation, after
every epoch, leaves out what it is better off without; and once more on what was so kept (seeds.py
says how runs go on). Nothing of the test split is used to choose.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tdmer.data import MultimodalDataset, write_store

sys.path.append(str(Path(__file__).parents[1]))
from options import number
from run_folder import from_json, to_json, write
from seeds import train
from splits import Samples, load_splits

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
    dropout = ["--modality-dropout", str(args.modality_dropout)]
    variants = {
        "without the leak": ["--modalities", *clean["train"].dims],
        "with it": [],
        "with it, dropout": dropout,
        "with it, dropout, choice": [*dropout, "--choose-modalities"],
    }
    rows: list[dict[str, Any]] = []

    def train_one(name: str, seed: int, own: list[str]) -> None:
        folder = args.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
        train(folder, store, [*options, *own, "--seed", str(seed)])
        found = from_json(folder / "metrics.json")
        kept = {"modalities": found["modalities"], "test": found["test"]}
        rows.append({"variant": name, "seed": seed, **kept})

    for name, own in variants.items():
        for seed in range(args.seeds):
            train_one(name, seed, own)
    for chosen in rows[-args.seeds :]:
        train_one("on what was kept", chosen["seed"], ["--modalities", *chosen["modalities"]])
    write(args.out / "leak.json", to_json(rows))
    show(rows)


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


def show(rows: list[dict[str, Any]]) -> None:
    """Print the figures of every run."""
    shown = [name for name in ("mae", "acc2_non0", "accuracy") if name in rows[0]["test"]]
    table = Table(title="Test split")
    for heading in ("variant", "seed", *shown, "modalities"):
        table.add_column(heading)
    for row in rows:
        cells = [f"{row['test'][name]:.3f}" for name in shown]
        table.add_row(row["variant"], str(row["seed"]), *cells, " ".join(row["modalities"]))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
