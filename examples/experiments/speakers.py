"""How many clips of a new speaker does it take to normalise their features?

    python examples/experiments/speakers.py runs/emotions/*/seed-0 --data emotions.npz

Of runs of train.py with ``--normalize-groups``. The clips of each test speaker, or other group, are
dealt at random into parts of about ``--clips``, each part is normalised as if there were no others,
and every clip is predicted with its own part; at last all clips of a speaker are one part.
``--out`` gets speakers.csv and speakers.md: the mean over runs and draws, and the standard
deviation over runs.
"""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
from differences import deviation, load_model
from numpy.typing import NDArray
from tables import origin, spread, table, write_csv, write_markdown

sys.path.append(str(Path(__file__).parents[1]))
from measure import collect
from options import number
from splits import Samples, load_splits
from task import main_figure, metrics

from tdmer.data import MultimodalDataset, normalize_by_group


def main() -> None:
    """Predict, write and show."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="folders that train.py wrote")
    add("--data", type=Path, required=True, help="as train.py takes it")
    add("--out", type=Path, default=Path("runs/speakers"), help="folder")
    add("--clips", type=number(int, 2), nargs="+", default=[2, 3, 5, 10, 20], help="at once")
    add("--draws", type=number(int, 1), default=5, help="of parts")
    args = parser.parse_args()
    try:
        measure_runs(args)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"speakers.py: {error}") from None


def measure_runs(args: argparse.Namespace) -> None:
    """Measure every run with parts of every size."""
    found: dict[int | str, list[float]] = {}
    for folder in args.runs:
        model, task, samples = load_model(folder)
        of = samples["normalize_groups"]
        if not of:
            raise ValueError(f"{folder} must be a run with --normalize-groups")
        data = load_splits(args.data, **samples | {"normalize_groups": False})["test"]
        figure = main_figure(task)
        sizes: dict[int | str, int] = {clips: clips for clips in args.clips} | {"all": len(data)}
        for clips, size in sizes.items():
            rng = np.random.default_rng(0)
            chosen = data.dims if of is True else data.dims.keys() & of
            outputs = [collect(model, in_parts(data, chosen, size, rng)) for _ in range(args.draws)]
            of_draws = [metrics(task, output.logits, output.labels)[figure] for output in outputs]
            found.setdefault(clips, []).append(float(np.mean(of_draws)))
    spreads = {clips: (float(np.mean(x)), deviation(np.array(x))) for clips, x in found.items()}
    rows = [{"clips": n, figure: mean, f"{figure}_sd": sd} for n, (mean, sd) in spreads.items()]
    about = {"figures of": f"{figure} on the test split", "draws": args.draws} | origin(args.runs)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "speakers.csv", rows, about)
    headings = ["clips of a speaker, normalised together", figure]
    lines = [[str(clips), spread(*x)] for clips, x in spreads.items()]
    title, note = "By how many clips", f"Mean ± standard deviation of {len(args.runs)} run(s)."
    write_markdown(args.out / "speakers.md", title, headings, lines, about, note)
    print(f"{table(headings, lines)}\n{note}")


def in_parts(
    data: Samples, modalities: Collection[str], clips: int, rng: np.random.Generator
) -> MultimodalDataset:
    """Return the samples, normalised in parts of at least so many, or all, of each group."""
    names: NDArray[np.object_] = np.empty(len(data), object)
    for group in dict.fromkeys(data.groups):
        own = [place for place, other in enumerate(data.groups) if other == group]
        parts = np.array_split(rng.permutation(own), max(1, len(own) // clips))
        for count, part in enumerate(parts):
            names[part] = f"{group}, part {count}"
    samples = [data[place] for place in range(len(data))]
    inputs = {m: [sample.inputs[m] for sample in samples] for m in data.dims}
    whole = MultimodalDataset(inputs, data.labels, data.ids)
    return normalize_by_group(whole, names, modalities=modalities)


if __name__ == "__main__":
    main()
