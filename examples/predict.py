"""Predict with a model that train.py saved.

    python examples/predict.py runs/latest --data mosi.pkl --out predictions.csv
    python examples/predict.py runs/latest --data mosi.pkl --drop audio   # as if it were missing
    python examples/predict.py runs/latest --data mosi.pkl --context 0.5  # with others of the video

Nothing that is read of the run folder can run code. Writes one line per sample, with id, label,
prediction and the fusion weight of every branch, and prints the metrics of the samples that have a
label. The data are dealt out into splits as for the run, and the model normalises raw features
itself.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from measure import collect
from options import number
from splits import load_splits
from task import Task, check_labels, metrics

from tdmer import TDMER, Predictor
from tdmer.fusion import add_context


def main() -> None:
    """Read the command line, and say in one line what is wrong with a file or an option."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="as train.py takes it")
    parser.add_argument("--split", default="test")
    parser.add_argument("--drop", nargs="+", default=[], metavar="MODALITY", help="leave out")
    context = "weight of what the other clips of the group say, best chosen by context.py"
    parser.add_argument("--context", type=number(float), default=0.0, help=context)
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"))
    args = parser.parse_args()
    try:
        predict_file(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"predict.py: {error}") from None


def load_run(folder: Path) -> tuple[TDMER, Task, dict[str, Any]]:
    """Return the model of a run folder, with its task and how its data were dealt out.

    Raises:
        OSError: A file is not there.
        ValueError: The files are not such as train.py writes, or do not fit each other.
    """
    predictor = Predictor.from_pretrained(folder)
    settings = folder / "run.json"
    content, chosen = settings.read_bytes(), (folder / "metrics.json").read_bytes()
    try:
        samples = dict(json.loads(content)["samples"])
        samples["modalities"] = json.loads(chosen)["modalities"]
    except Exception as error:
        # Whatever a damaged file makes of these lines, it is the file that is to be named.
        raise ValueError(f"{settings} must be one that train.py wrote, got {error!r}") from None
    return predictor.model, predictor.task, samples


def predict_file(args: argparse.Namespace) -> None:
    """Predict one split of a file."""
    model, task, samples = load_run(args.run)
    splits = load_splits(args.data, **samples)
    check_labels(args.data, splits, task)
    if args.split not in splits:
        raise ValueError(f"--split must be one of {list(splits)}, got {args.split!r}")
    data = splits[args.split]
    unfit = {m: width for m, width in data.dims.items() if model.dims.get(m) != width}
    if unfit:
        raise ValueError(f"{args.data} must have modalities of {model.dims}, got {unfit}")
    left = [m for m in data.dims if m not in args.drop]
    if not left or not set(args.drop) <= data.dims.keys():
        raise ValueError(f"--drop must be some, not all, of {list(data.dims)}, got {args.drop}")

    outputs = collect(model, data.only(left))
    logits = add_context(outputs.logits, data.groups, weight=args.context)
    columns = [outputs.labels, task.predict(logits), *outputs.weights.values()]
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "prediction", *outputs.weights])
        for name, *row in zip(data.ids, *(column.tolist() for column in columns), strict=True):
            writer.writerow([name, *(f"{x:.4f}" if isinstance(x, float) else x for x in row)])
    print(f"{len(data)} predictions in {args.out}")
    if task.labelled(data.labels).any():
        found = metrics(task, logits, outputs.labels)
        print("  ".join(f"{name} {value:.4f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
