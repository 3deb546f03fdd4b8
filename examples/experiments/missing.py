"""How much of its accuracy does a model keep when samples lack a modality?

    python examples/experiments/missing.py runs/mosi/seed-* --data mosi.pkl

Of any runs of train.py that were trained alike. For every modality, and every share from none to
all, as many samples of the test split, drawn at random, are predicted without it; the figure is the
mean over draws. ``--out`` gets missing.csv and missing.md, with what they depend on, and
missing.png: a line for each modality, with the standard deviation over the runs.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from differences import deviation, load_model
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tables import spread, table, write_csv, write_markdown

sys.path.append(str(Path(__file__).parents[1]))
from measure import collect
from options import number
from run_folder import write
from splits import load_splits
from task import main_figure, metrics

from tdmer.viz import line_style

NAMES = {"mae": "MAE", "accuracy": "accuracy"}


def main() -> None:
    """Predict with and without, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="folders that train.py wrote")
    add("--data", type=Path, help="as train.py takes it")
    add("--out", type=Path, default=Path("runs/missing"), help="folder")
    add("--split", default="test", help="which to predict (default: test)")
    add("--shares", type=number(int, 1), default=10, help="steps from none to all (default: 10)")
    add("--draws", type=number(int, 1), default=20, help="of samples, per share (default: 20)")
    args = parser.parse_args()
    try:
        measure_runs(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"missing.py: {error}") from None


def measure_runs(args: argparse.Namespace) -> None:
    """Measure, write and draw."""
    args.out.mkdir(parents=True, exist_ok=True)
    shares = np.linspace(0, 1, args.shares + 1)
    found = [curves(folder, args, shares) for folder in args.runs]
    figure = found[0][0]
    if len({(name, tuple(lines)) for name, lines in found}) > 1:
        raise ValueError("runs must be of one task and of the same modalities")
    by_modality = {m: np.stack([lines[m] for _, lines in found]) for m in found[0][1]}

    rows: list[dict[str, Any]] = []
    for place, share in enumerate(shares):
        row: dict[str, Any] = {"share": float(share)}
        for m, values in by_modality.items():
            column = values[:, place]
            row |= {m: float(column.mean()), f"{m}_sd": deviation(column)}
        rows.append(row)
    first = json.loads((args.runs[0] / "run.json").read_bytes())
    about = {
        "figures of": f"{figure} on the {args.split} split",
        "runs": [str(folder) for folder in args.runs],
        "draws": args.draws,
    } | {name: first[name] for name in ("data", "samples", "model", "training", "versions")}
    write_csv(args.out / "missing.csv", rows, about)
    lines = [
        [f"{row['share']:.0%}", *(spread(row[m], row[f"{m}_sd"]) for m in by_modality)]
        for row in rows
    ]
    headings = ["share that lacks it", *by_modality]
    title = f"{NAMES[figure]} where samples lack a modality"
    note = f"Mean ± standard deviation of {len(found)} run(s)."
    write_markdown(args.out / "missing.md", title, headings, lines, about, note)
    print(f"\n{title}\n\n{table(headings, lines)}\n{note}")
    draw(args.out / "missing.png", NAMES[figure], shares, by_modality)


def curves(
    folder: Path, args: argparse.Namespace, shares: NDArray[np.float64]
) -> tuple[str, dict[str, NDArray[np.float64]]]:
    """Return the name of the figure, and its values over the shares for every modality."""
    model, task, samples = load_model(folder)
    splits = load_splits(args.data, **samples)
    if args.split not in splits:
        raise ValueError(f"--split must be one of {list(splits)}, got {args.split!r}")
    data, figure = splits[args.split], main_figure(task)
    if len(data.dims) < 2:
        raise ValueError(f"{folder} must have two modalities or more, got {list(data.dims)}")
    # A sample's prediction depends on no other: it is made once with, and once without.
    whole = collect(model, data)
    rng = np.random.default_rng(0)
    orders = torch.as_tensor(np.stack([rng.permutation(len(data)) for _ in range(args.draws)]))
    found = {}
    for modality in data.dims:
        without = collect(model, data.only([m for m in data.dims if m != modality])).logits
        values = []
        for share in shares:
            lacks = orders < round(share * len(data))
            drawn = [torch.where(row.unsqueeze(1), without, whole.logits) for row in lacks]
            of_draws = [metrics(task, logits, whole.labels)[figure] for logits in drawn]
            values.append(np.mean(of_draws))
        found[modality] = np.array(values)
    return figure, found


def draw(
    path: Path,
    name: str,
    shares: NDArray[np.float64],
    by_modality: dict[str, NDArray[np.float64]],
) -> None:
    """Draw a line for every modality, with the deviation over the runs."""
    picture = Figure(figsize=(5.4, 4), layout="constrained")
    axes = picture.subplots()
    for place, (m, values) in enumerate(by_modality.items()):
        style = line_style(place)
        axes.plot(100 * shares, values.mean(axis=0), label=m, **style)
        if len(values) > 1:
            middle, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
            axes.fill_between(
                100 * shares, middle - sd, middle + sd, color=style["color"], alpha=0.15
            )
    axes.set(xlabel="samples that lack the modality (%)", ylabel=name)
    axes.set_title(f"{name} where samples lack a modality")
    axes.grid(alpha=0.3)
    axes.legend(title="lacking", handlelength=3.2)
    content = io.BytesIO()
    picture.savefig(content, format="png", dpi=120)
    write(path, content.getvalue())
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
