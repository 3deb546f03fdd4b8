"""Tables III, IV and V of the paper in their own layout, and the choices that it leaves open.

    python examples/experiments/ablation.py                        # world.py's synthetic data
    python examples/experiments/ablation.py --data mosi.pkl --jobs 2
    python examples/experiments/ablation.py --data emotions.npz --label emotion --group actor \
        --split folds:4

All other options are those of train.py and hold for every row. Every row is trained with the same
seeds; the same command goes on where it was killed. The test split is read once per run, with the
epoch that was best in validation; ``--read valid`` leaves it alone.

``--out`` then holds decoupling (Tables III and IV), modules (Table V) and choices, each as .csv and
.md, with all that the figures depend on; and orderings, which says of every row of the paper
whether leaving the part out costs here what it costs there. Differences are to the whole, paired,
with 95 % bootstrap intervals over seeds and samples, and p values that Holm's method corrects for
the number of rows. A difference with p of 0.05 or more is not told from noise.
"""

import argparse
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from differences import answers, by_variant, deviation, differences, figures
from runs import add_options, execute_all, load_data, plan
from tables import gap, provenance, spread, table, write_csv, write_markdown
from world import write_world

sys.path.append(str(Path(__file__).parents[1]))

WHOLE = "TDMER"
DECOUPLING = {
    "(-) L_con": "--without con",
    "(-) L_rec": "--without rec",
    "(-) L_cp": "--without cp",
    "(-) L_pp": "--without pp",
    WHOLE: "",
}
# The columns of Table V, and what is left out where a row has a cross.
PARTS = ("L_en", "common CML", "private CML", "TCF")
MODULES = {
    "(-) L_en": "--without en",
    "(-) common CML": "--without dc",
    "(-) private CML": "--without dp --layers 0",
    "(-) common and private CML": "--without dc dp --layers 0",
    "(-) TCF": "--fusion mean",
    WHOLE: "",
}
CROSSES = {
    "(-) L_en": "✗✓✓✓",
    "(-) common CML": "✓✗✓✓",
    "(-) private CML": "✓✓✗✓",
    "(-) common and private CML": "✓✗✗✓",
    "(-) TCF": "✓✓✓✗",
    WHOLE: "✓✓✓✓",
}
CHOICES = {
    "dynamic learning off, attention on": "--without dc dp",
    "attention off, dynamic learning on": "--layers 0",
    "no decoupling loss": "--without con rec cp pp en",
    "L_rec weighs 10, as in the paper": "--rec-weight 10",
    "private features alone untrained": "--without own",
    "moments over steps": "--samples steps",
    "common features end in sigmoid": "--activation sigmoid",
    "convolution over one step": "--kernel-size 1",
    WHOLE: "",
}
STEPWISE = ("moments over steps", "convolution over one step")
# Acc2, F1, Acc7 in % and MAE, as printed: Tables III and IV, and Table V.
PAPER = {
    "CMU-MOSI": {
        "(-) L_con": (85.4, 85.2, 45.2, 0.736),
        "(-) L_rec": (85.4, 85.2, 45.6, 0.734),
        "(-) L_cp": (85.2, 84.9, 32.8, 0.951),
        "(-) L_pp": (85.2, 85.2, 43.3, 0.751),
        "(-) L_en": (85.4, 85.4, 44.7, 0.715),
        "(-) common CML": (85.2, 85.1, 44.2, 0.728),
        "(-) private CML": (85.0, 85.0, 43.6, 0.736),
        "(-) common and private CML": (84.8, 84.7, 42.3, 0.778),
        "(-) TCF": (85.3, 85.2, 43.4, 0.765),
        WHOLE: (86.1, 86.0, 44.6, 0.712),
    },
    "CMU-MOSEI": {
        "(-) L_con": (85.1, 85.0, 51.1, 0.559),
        "(-) L_rec": (85.3, 85.3, 53.8, 0.542),
        "(-) L_cp": (85.6, 85.5, 51.8, 0.559),
        "(-) L_pp": (85.6, 85.6, 51.9, 0.543),
        "(-) L_en": (85.1, 85.0, 54.1, 0.564),
        "(-) common CML": (84.8, 84.9, 54.1, 0.573),
        "(-) private CML": (84.6, 84.5, 53.9, 0.586),
        "(-) common and private CML": (84.1, 84.0, 53.5, 0.589),
        "(-) TCF": (84.8, 84.7, 54.1, 0.569),
        WHOLE: (85.9, 85.7, 54.3, 0.532),
    },
}
# Figures in the order of the paper's columns; those of classes are the nearest to them.
SCORES = {"acc2_non0": "Acc2 (%)", "f1_non0": "F1 (%)", "acc7": "Acc7 (%)", "mae": "MAE"}
CLASSES = {"accuracy": "accuracy (%)", "f1_weighted": "F1 (%)", "f1_macro": "F1 macro (%)"}
PLAIN = ("mae",)  # which is no share of samples


def main() -> None:
    """Train every row, write the tables, and say which orderings of the paper are found."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="All other options are those of examples/train.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, help="as train.py takes it; default: world.py's")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder")
    parser.add_argument("--read", choices=["valid", "test"], default="test", help="figures")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these, and the whole")
    add_options(parser, seeds=5)
    args, options = parser.parse_known_args()
    try:
        run_rows(args, options)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"ablation.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("ablation.py: stopped; the same command goes on") from None


def run_rows(args: argparse.Namespace, options: list[str]) -> None:
    """Train and tell."""
    # The whole comes first: the others are compared with it.
    variants = {WHOLE: ""} | DECOUPLING | MODULES | CHOICES
    if args.rows:
        unknown = [row for row in args.rows if row not in variants]
        if unknown:
            raise ValueError(f"--rows must be of {list(variants)}, got {unknown}")
        variants = {WHOLE: ""} | {row: variants[row] for row in args.rows}
    data = args.data or write_world(args.out / "world")
    shared = ["--data", str(data), *options]
    train = load_data(plan(args, {WHOLE: ""}, shared, seeds=1)[0])["train"]
    if all((steps <= 1).all() for steps in train.lengths.values()):
        print(f"Samples are single steps, which leaves nothing to {STEPWISE}: left out")
        variants = {row: own for row, own in variants.items() if row not in STEPWISE}
    runs = plan(args, variants, shared)
    execute_all(runs, args.jobs)

    every = by_variant(runs)
    found = {name: [figures(run, args.read) for run in own] for name, own in every.items()}
    told = {name: answers(own, args.read) for name, own in every.items()}
    gaps = differences(told, WHOLE)
    about = provenance(runs, args.read, shared)
    tables = (
        ("decoupling", "Ablation of the decoupling losses (Tables III and IV)", DECOUPLING),
        ("modules", "Ablation of the main modules (Table V)", MODULES),
        ("choices", "Ablation of what the paper leaves open", CHOICES),
    )
    for name, title, rows in tables:
        kept = {row: found[row] for row in rows if row in found}
        if len(kept) > 1:
            write_table(args.out / name, f"{title}, {data.stem}", kept, gaps, about)
    order(
        args.out / "orderings", {row: gaps[row] for row in PAPER["CMU-MOSI"] if row in gaps}, about
    )


def write_table(
    path: Path,
    title: str,
    found: Mapping[str, list[dict[str, float]]],
    gaps: Mapping[str, dict[str, float]],
    about: dict[str, Any],
) -> None:
    """Write and print one table in the layout of the paper, with the differences beside it."""
    scores = "mae" in found[WHOLE][0]
    columns, main = (SCORES, "MAE") if scores else (CLASSES, "accuracy")
    crosses = path.name == "modules"
    rows, lines = [], []
    for name, figures_ in found.items():
        row: dict[str, Any] = {"row": name}
        cells = list(CROSSES[name]) if crosses else [name]
        for column in columns:
            values = np.array([figure[column] for figure in figures_])
            row |= {column: float(values.mean()), f"{column}_sd": deviation(values)}
            plain = column in PLAIN
            values = values if plain else 100 * values
            cells.append(spread(values.mean(), deviation(values), 3 if plain else 1))
        gap_ = gaps.get(name)
        row |= {f"difference_{end}": x for end, x in (gap_ or {}).items()}
        cells += ["", ""] if gap_ is None else [gap(gap_), f"{gap_['p_holm']:.3f}"]
        rows.append(row)
        lines.append(cells)
    first = PARTS if crosses else ("Model",)
    headings = [*first, *columns.values(), f"difference in {main} (95 %)", "p (Holm)"]
    # The whole has no difference, and may stand last.
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(path.with_suffix(".csv"), [dict.fromkeys(names, "") | row for row in rows], about)
    runs = len(found[WHOLE])
    note = (
        f"Mean ± standard deviation of {runs} run(s). Differences to the whole are paired, with "
        "95 % bootstrap intervals over seeds and samples."
    )
    write_markdown(path.with_suffix(".md"), title, headings, lines, about, note)
    print(f"\n{title}\n\n{table(headings, lines)}\n{note}")


def order(path: Path, gaps: Mapping[str, dict[str, float]], about: dict[str, Any]) -> None:
    """Say which orderings of the paper are found: of parts against the whole, and of parts.

    The paper's are those of the MAE, ours of the figure that is compared. A gap is turned so that
    it is above 0 where leaving the part out makes the prediction worse.
    """
    if not gaps:
        return
    sign = 1 if about["configuration of 'TDMER'"]["task"]["name"] == "Sentiment" else -1
    cost = {row: sign * gap_["mean"] for row, gap_ in gaps.items()}
    told = {row: gap_["p_holm"] < 0.05 for row, gap_ in gaps.items()}
    paper = {
        name: {row: figures_[row][-1] - figures_[WHOLE][-1] for row in gaps}
        for name, figures_ in PAPER.items()
    }
    verdicts = {
        row: "not told from noise" if not told[row] else "as in the paper" if x > 0 else "opposite"
        for row, x in cost.items()
    }
    lines = [
        [row, *(f"{paper[name][row]:+.3f}" for name in paper), f"{cost[row]:+.3f}", verdicts[row]]
        for row in gaps
    ]
    headings = ["left out", *(f"{name}, paper" for name in paper), "here", "leaving it out costs"]
    said = [
        "How much worse the prediction is without a part: MAE in the paper, and here MAE or the "
        f"loss of accuracy. Of {len(gaps)} parts, each of which brings something in the paper, "
        f"{list(verdicts.values()).count('as in the paper')} do here, "
        f"{list(verdicts.values()).count('opposite')} do harm, and "
        f"{list(verdicts.values()).count('not told from noise')} are not told from noise."
    ]
    for name, costs in paper.items():
        pairs = [(p, q) for p, q in combinations(gaps, 2) if costs[p] != costs[q]]
        same = sum((costs[p] > costs[q]) == (cost[p] > cost[q]) for p, q in pairs)
        said.append(f"Of {len(pairs)} pairs of parts, {same} are in the order of {name}.")
    note = " ".join(said)
    title = "Which orderings of the paper are found"
    rows = [dict(zip(headings, line, strict=True)) for line in lines]
    write_csv(path.with_suffix(".csv"), rows, about)
    write_markdown(path.with_suffix(".md"), title, headings, lines, about, note)
    print(f"\n{title}\n\n{table(headings, lines)}\n{note}")


if __name__ == "__main__":
    main()
