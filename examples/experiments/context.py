"""What do the other clips of a video tell about each?

    python examples/experiments/context.py runs/mosi/seed-* --data mosi.pkl

Of runs of train.py, whatever the system: the logits of every clip, with those of the other clips of
its video, or of any other group, added to them (tdmer.fusion.add_context). The weight of these is
the one with the best mean on the validation splits; the test splits are read without others and
with that weight. ``--out`` gets context.csv, the figures of every weight in validation, and
context.md, those of the test splits.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from differences import compare, deviation, load_model
from numpy.typing import NDArray
from tables import gap, origin, spread, table, write_csv, write_markdown

sys.path.append(str(Path(__file__).parents[1]))
from measure import collect
from options import number
from splits import load_splits
from task import main_figure, metrics, standing

from tdmer.fusion import add_context

WEIGHTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5]


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="folders that train.py wrote")
    add("--data", type=Path, required=True, help="as train.py takes it")
    add("--out", type=Path, default=Path("runs/context"), help="folder")
    add("--weights", type=number(float), nargs="+", default=WEIGHTS, help="of the other clips")
    args = parser.parse_args()
    try:
        measure_runs(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"context.py: {error}") from None


def measure_runs(args: argparse.Namespace) -> None:
    """Choose the weight in validation, and measure every run with it."""
    weights = [0.0, *args.weights]
    ranks = []
    found: dict[str, list[list[dict[str, float]]]] = {"valid": [], "test": []}
    for folder in args.runs:
        model, task, samples = load_model(folder)
        splits = load_splits(args.data, **samples)
        if all(len(set(data.groups)) == len(data) for data in splits.values()):
            raise ValueError(f"{args.data} must have groups of several clips: --group names them")
        for split, of_runs in found.items():
            outputs, groups = collect(model, splits[split]), splits[split].groups
            logits = [add_context(outputs.logits, groups, weight=weight) for weight in weights]
            of_runs.append([metrics(task, x, outputs.labels) for x in logits])
        ranks.append([standing(task, figures) for figures in found["valid"][-1]])
    # Of means over runs, as one weight is for all.
    means = [tuple(rank) for rank in np.mean(ranks, axis=0)]
    best = means.index(max(means))
    figure = main_figure(task)

    def column(split: str, place: int, name: str) -> NDArray[np.float64]:
        return np.array([figures[place][name] for figures in found[split]])

    rows = [{"weight": weight} for weight in weights]
    for place, row in enumerate(rows):
        values = column("valid", place, figure)
        row |= {figure: float(values.mean()), f"{figure}_sd": deviation(values)}
    about = {"figures of": "the validation split"} | origin(args.runs)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "context.csv", rows, about)
    names = [name for name in found["test"][0][0] if name != "loss"]
    headings = ["others weigh", f"{figure} in validation", *names, f"difference in {figure} (95 %)"]
    lines = []
    for place in dict.fromkeys([0, best]):
        columns = [("valid", figure), *(("test", name) for name in names)]
        values_of = [column(split, place, name) for split, name in columns]
        difference = gap(compare(column("test", place, figure), column("test", 0, figure)))
        cells = [spread(float(x.mean()), deviation(x)) for x in values_of]
        lines.append([f"{weights[place]:g}", *cells, difference if place else ""])
    about["figures of"] = "the test split, but for the second column"
    title = "With the other clips of a video"
    note = (
        f"Mean ± standard deviation of {len(args.runs)} run(s); the difference is over runs, with "
        "its 95 % bootstrap interval."
    )
    write_markdown(args.out / "context.md", title, headings, lines, about, note)
    print(f"{table(headings, lines)}\n{note}")


if __name__ == "__main__":
    main()
