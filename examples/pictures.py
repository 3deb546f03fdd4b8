"""Draw every picture of tdmer.viz for a trained model; docs/pictures.md shows those of this script.

    python examples/pictures.py                                    # synthetic data, its own runs
    python examples/pictures.py runs/mosi/seed-0 --data mosi.pkl   # of a run of train.py
    python examples/pictures.py runs/whole --before runs/plain     # of runs on synthetic data

Of the test split, but for the training curves. The subspaces "before" are those of a second run,
trained with ``--without con rec cp pp``, as in Fig. 2 of the paper.
"""

import argparse
import io
from pathlib import Path

import torch
from matplotlib.figure import Figure
from options import parse_args
from PIL import Image
from predict import load_run
from run_folder import from_json, write
from splits import load_splits
from train import train

from tdmer import Predictor, Sentiment, viz
from tdmer.data import collate
from tdmer.model import TDMEROutput

PARTING = ("con", "rec", "cp", "pp")
QUICK = ["--steps", "300", "--width", "32", "--resume"]


def main() -> None:
    """Train if there is no run, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder that train.py wrote")
    parser.add_argument("--before", type=Path, help="that of a run --without con rec cp pp")
    parser.add_argument("--data", type=Path, help="as train.py takes it")
    parser.add_argument("--out", type=Path, default=Path("runs/pictures"), help="folder")
    args = parser.parse_args()
    try:
        if args.run is None:
            args.run, args.before = args.out / "after", args.out / "before"
            for folder, more in ((args.run, []), (args.before, ["--without", *PARTING])):
                data = ["--data", str(args.data)] if args.data else []
                train(parse_args("", [*QUICK, *data, *more, "--out", str(folder)]))
        draw(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"pictures.py: {error}") from None


@torch.inference_mode()
def draw(args: argparse.Namespace) -> None:
    """Draw what a run and its test split show."""
    model, task, samples = load_run(args.run)
    data = load_splits(args.data, **samples)["test"]
    batch = collate([data[number] for number in range(len(data))])
    output: TDMEROutput = model.eval()(*batch)
    result = from_json(args.run / "metrics.json")
    predicted = task.predict(output.logits)

    save(args.out, "training", viz.training_curves(result["history"], chosen=result["epoch"]))
    runs = {"after decoupling": output}
    if args.before:
        runs = {"before decoupling": load_run(args.before)[0].eval()(*batch)} | runs
    for method in ("pca", "tsne"):
        figure = Figure(figsize=(5 * len(runs), 4.8), layout="constrained")
        panels = figure.subplots(1, len(runs), squeeze=False)[0]
        for axes, (title, found) in zip(panels, runs.items(), strict=True):
            viz.subspaces(found, method=method, axes=axes).set_title(title)
        save(args.out, f"subspaces-{method}", figure)
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), ("common", "enhanced"), strict=True):
        viz.edge_graph(output, part=part, axes=axes)
    save(args.out, "edges", figure)
    save(args.out, "reliability", viz.reliability(output, batch.labels, task).figure)
    save(args.out, "classes", viz.class_contributions(output, batch.labels, task).figure)
    if isinstance(task, Sentiment):
        save(args.out, "scores", viz.predicted_scores(predicted, batch.labels).figure)
        nearest = [
            (x.unsqueeze(1) - task.values).abs().argmin(1) for x in (predicted, batch.labels)
        ]
        matrix = viz.confusion_matrix(*nearest, classes=task.names)
    else:
        matrix = viz.confusion_matrix(predicted, batch.labels, classes=task.names)
    save(args.out, "confusion", matrix.figure)

    predictor = Predictor(model, task)
    clip = max((data[number] for number in range(20)), key=lambda clip: len(clip.inputs))
    save(args.out, "contributions", viz.contributions(predictor(clip.inputs)))
    long = next((m for m, x in clip.inputs.items() if len(x) > 1), None)
    if long is not None:
        save(args.out, "steps", viz.step_contributions(predictor, clip.inputs, long).figure)


def save(folder: Path, name: str, figure: object) -> None:
    """Write a picture as a small file: with few shades."""
    assert isinstance(figure, Figure)
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    small = io.BytesIO()
    Image.open(content).convert("RGB").quantize(64).save(small, "png", optimize=True)
    write(folder / f"{name}.png", small.getvalue())
    print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
