"""Predict with a model that train.py saved.

    python examples/predict.py runs/latest --data mosi.pkl --out predictions.csv

Reads config.json and model.safetensors of the run folder, and writes one line per sample: id,
label, prediction and the fusion weight of every branch. The model normalises raw features itself.
"""

import argparse
import csv
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from tdmer import TDMER, Sentiment
from tdmer.data import collate, load_mmsa


def load_run(folder: Path) -> tuple[TDMER, Sentiment]:
    """Rebuild the model of a run folder, with the task that reads its logits."""
    config = json.loads((folder / "config.json").read_text())
    model = TDMER(**config["model"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), Sentiment(**config["task"])


@torch.no_grad()
def main() -> None:
    """Predict one split of a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="pickle in MMSA's layout")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"])
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"))
    args = parser.parse_args()
    model, task = load_run(args.run)
    data = load_mmsa(args.data)[args.split]
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "prediction", *model.fusion.heads])
        for batch in DataLoader(data, batch_size=128, collate_fn=collate):
            output = model(batch.inputs, batch.masks)
            columns = [batch.labels, task.predict(output.logits), *output.weights.values()]
            for name, row in zip(batch.ids, torch.stack(columns, dim=1).tolist(), strict=True):
                writer.writerow([name, *(f"{value:.4f}" for value in row)])
    print(f"{len(data)} predictions in {args.out}")


if __name__ == "__main__":
    main()
