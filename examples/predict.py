"""Predict with a model that train.py saved.

    python examples/predict.py runs/latest --data mosi.pkl --out predictions.csv
    python examples/predict.py runs/latest --data mosi.pkl --drop audio   # as if it were missing

Reads config.json and model.safetensors of the run folder, neither of which can run code. Writes
one line per sample, with id, label, prediction and the fusion weight of every branch, and prints
the metrics of the samples that have a label. The model normalises raw features itself.
"""

import argparse
import csv
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from tdmer import TDMER, Sentiment, sentiment_metrics
from tdmer.data import collate, load_mmsa, open_store


def main() -> None:
    """Read the command line, and say in one line what is wrong with a file or an option."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="pickle in MMSA's layout or store")
    parser.add_argument("--split", default="test")
    parser.add_argument("--drop", nargs="+", default=[], metavar="MODALITY", help="leave out")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"))
    args = parser.parse_args()
    try:
        predict(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"predict.py: {error}") from None


def load_run(folder: Path) -> tuple[TDMER, Sentiment]:
    """Rebuild the model of a run folder, with the task that reads its logits."""
    settings, weights = folder / "config.json", folder / "model.safetensors"
    content = settings.read_bytes()
    try:
        config = json.loads(content)
        task = Sentiment(**config["task"])
        with torch.device("meta"):  # shapes without memory: the file of weights is the measure
            shapes = {name: x.shape for name, x in TDMER(**config["model"]).state_dict().items()}
    except Exception as error:
        # Whatever a damaged file makes of these lines, it is the file that is to be named.
        raise ValueError(f"{settings} must be one that train.py wrote, got {error!r}") from None
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} must be a whole safetensors file, got {error}") from None
    for name in sorted(shapes.keys() | tensors.keys()):
        there = tuple(tensors[name].shape) if name in tensors else None
        if name not in shapes or there != shapes[name]:
            wanted = tuple(shapes[name]) if name in shapes else None
            raise ValueError(f"{weights} must fit config.json: {name} of {wanted}, got {there}")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{weights} must hold finite weights, got NaN or inf in {name}")
    model = TDMER(**config["model"])
    model.load_state_dict(tensors)
    return model.eval(), task


@torch.no_grad()
def predict(args: argparse.Namespace) -> None:
    """Predict one split of a file."""
    model, task = load_run(args.run)
    splits = open_store(args.data) if args.data.is_dir() else load_mmsa(args.data)
    if args.split not in splits:
        raise ValueError(f"--split must be one of {list(splits)}, got {args.split!r}")
    data = splits[args.split]
    unfit = {m: width for m, width in data.dims.items() if model.dims.get(m) != width}
    if unfit:
        raise ValueError(f"{args.data} must have modalities of {model.dims}, got {unfit}")
    left = [m for m in data.dims if m not in args.drop]
    if not left or not set(args.drop) <= data.dims.keys():
        raise ValueError(f"--drop must be some, not all, of {list(data.dims)}, got {args.drop}")

    rows, predictions = [], []
    for batch in DataLoader(data, batch_size=128, collate_fn=collate):
        inputs, masks = ({m: part[m] for m in left} for part in batch[:2])
        output = model(inputs, masks)
        predictions.append(task.predict(output.logits))
        columns = [batch.labels, predictions[-1], *output.weights.values()]
        for name, row in zip(batch.ids, torch.stack(columns, dim=1).tolist(), strict=True):
            rows.append([name, *(f"{value:.4f}" for value in row)])
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "prediction", *output.weights])
        writer.writerows(rows)
    print(f"{len(data)} predictions in {args.out}")
    if not data.labels.isnan().all():
        metrics = sentiment_metrics(torch.cat(predictions), data.labels)
        print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


if __name__ == "__main__":
    main()
