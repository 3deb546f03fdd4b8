"""How much of its accuracy does a system keep when samples lack a modality?

    python examples/experiments/missing.py runs/mosi/seed-* --data mosi.pkl
    python examples/experiments/missing.py $(cat runs/comparison/chosen.txt) --data mosi.pkl

Of any runs of train.py on the same data; those of one system, with the same modalities, are taken
together. For every modality, and every share from none to all, as many samples of the test split,
drawn at random, are predicted without it; the figure is the mean over draws. ``--out`` gets
missing.csv and missing.md, with what they depend on, and missing.png: a panel for each modality, a
line for each system. Runs of a single modality have nothing to go on with, and are left out.
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
from tables import origin, spread, table, write_csv, write_markdown

sys.path.append(str(Path(__file__).parents[1]))
from measure import collect
from options import number
from run_folder import write
from splits import load_splits
from task import main_figure, metrics

from tdmer.viz import line_style

NAMES = {"mae": "MAE", "accuracy": "Accuracy"}
Curves = dict[str, NDArray[np.float64]]


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
    found: dict[str, list[Curves]] = {}
    kinds = set()
    for folder in args.runs:
        system, figure, lines = curves(folder, args, shares)
        if lines:
            found.setdefault(system, []).append(lines)
            kinds.add((figure, tuple(lines)))
    if len(kinds) != 1:
        raise ValueError("runs must be of one task and of the same modalities, two or more")
    figure, modalities = kinds.pop()
    # System → modality → runs by shares.
    values = {
        system: {m: np.stack([lines[m] for lines in runs]) for m in modalities}
        for system, runs in found.items()
    }
    write_all(args, figure, shares, values)
    draw(args.out / "missing.png", NAMES[figure], shares, values)


def write_all(
    args: argparse.Namespace, figure: str, shares: NDArray[np.float64], values: dict[str, Curves]
) -> None:
    """Write every figure, and show those of half the samples and of all."""
    rows: list[dict[str, Any]] = [
        {
            "system": system,
            "modality": m,
            "share": float(share),
            figure: float(column.mean()),
            f"{figure}_sd": deviation(column),
            "runs": len(column),
        }
        for system, own in values.items()
        for m, of_runs in own.items()
        for share, column in zip(shares, of_runs.T, strict=True)
    ]
    about = {"figures of": f"{figure} on the {args.split} split", "draws": args.draws}
    about |= origin(args.runs)
    write_csv(args.out / "missing.csv", rows, about)
    half = len(shares) // 2
    lines, names = [], []
    for system, own in values.items():
        shown = [next(iter(own.values()))[:, 0]]
        shown += [of_runs[:, place] for of_runs in own.values() for place in (half, -1)]
        lines.append([system, *(spread(x.mean(), deviation(x)) for x in shown)])
        names = [f"{shares[place]:.0%} lack {m}" for m in own for place in (half, -1)]
    headings = ["system", "nothing lacks", *names]
    title = f"{NAMES[figure]} where samples lack a modality"
    note = f"Mean ± standard deviation of {max(row['runs'] for row in rows)} run(s)."
    write_markdown(args.out / "missing.md", title, headings, lines, about, note)
    print(f"\n{title}\n\n{table(headings, lines)}\n{note}")


def curves(
    folder: Path, args: argparse.Namespace, shares: NDArray[np.float64]
) -> tuple[str, str, Curves]:
    """Return the names of system and figure, and its values over the shares by modality.

    Of a single modality there are none.
    """
    model, task, samples = load_model(folder)
    training = json.loads((folder / "run.json").read_bytes())["training"]
    system = training["system"].replace("tdmer", "TDMER")
    splits = load_splits(args.data, **samples)
    if args.split not in splits:
        raise ValueError(f"--split must be one of {list(splits)}, got {args.split!r}")
    data, figure = splits[args.split], main_figure(task)
    if len(data.dims) < 2:
        return system, figure, {}
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
    return system, figure, found


def draw(path: Path, name: str, shares: NDArray[np.float64], values: dict[str, Curves]) -> None:
    """Draw a panel for every modality, and there a line for every system."""
    modalities = list(next(iter(values.values())))
    picture = Figure(figsize=(1.6 + 3.4 * len(modalities), 4.2), layout="constrained")
    panels = picture.subplots(1, len(modalities), sharey=True)
    for axes, m in zip(panels, modalities, strict=True):
        for place, (system, own) in enumerate(values.items()):
            middle, style = own[m].mean(axis=0), line_style(place)
            axes.plot(100 * shares, middle, label=system, **style)
            if len(values) == 1 and len(own[m]) > 1:
                sd = own[m].std(axis=0, ddof=1)
                axes.fill_between(
                    100 * shares, middle - sd, middle + sd, color=style["color"], alpha=0.15
                )
        axes.set(xlabel=f"samples that lack {m} (%)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(name)
    picture.legend(
        *panels[0].get_legend_handles_labels(), loc="outside right upper", handlelength=3.2
    )
    picture.suptitle(f"{name} where samples lack a modality")
    content = io.BytesIO()
    picture.savefig(content, format="png", dpi=120)
    write(path, content.getvalue())
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
