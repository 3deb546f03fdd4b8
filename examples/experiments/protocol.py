"""Compare variants over several splits and seeds, with the uncertainty of every difference.

    python examples/experiments/protocol.py --data emotions.npz --label emotion --group actor \
        --split folds:4 --seeds 3 --out runs/emotions --variant "default" \
        --variant "no attention: --layers 0" --variant "logistic regression: sklearn"

A variant is a name and options of train.py; or ``sklearn``, with a name that begins with
``logistic regression``, ``svm``, ``mlp`` or, for scores, ``ridge`` (baselines.py). Options that are
not listed below are train.py's, and hold for all variants. ``--split`` takes several;
``folds:4`` stands for all four. Every run is one of train.py, in a folder of its own below
``--out``: the same command goes on where it was cut short, and trains nothing again that is
finished.

The figures that are read, written and shown are those of the validation split, by which variants
may be chosen. ``--read test`` reads the test split instead: once, when everything is chosen.
``--refit`` does so, too, after each run was trained again on train and valid together, for as many
steps as it had chosen. The best branch is always the one that was best in validation.

``--choose`` adds what a choice in validation brings, such as that of the modalities: the row
``chosen`` has, of every split, the variant whose mean over seeds was best in validation there.

Differences are to the first variant, paired by split and seed: the mean, a 95 % bootstrap interval,
and the p value of a permutation test. With four splits or more the unit is a split, for seeds of
one split share its samples; with fewer it is a run, and the interval says nothing of other samples.
Of n units no p value is below 2 / 2^n, 0.125 of four.
The table stands in valid.csv and valid.md (test, refit), with all that it depends on, and with
every run in valid.json.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from differences import BRANCHES, CLASSES, SCORES, summarize
from rich.console import Console
from rich.table import Table
from runs import Run, add_options, execute_all, plan
from tables import gap, provenance, spread, write_csv, write_markdown

sys.path.append(str(Path(__file__).parents[1]))
from run_folder import from_json, to_json, write

CHOSEN = "chosen"
TITLES = {
    "valid": "Validation split",
    "test": "Test split",
    "refit": "Test split, trained on train and valid",
}


def main() -> None:
    """Train, compare, write and show."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="All other options are those of examples/train.py.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--variant", action="append", required=True, metavar="NAME: OPTIONS", help="several")
    add("--out", type=Path, required=True, help="folder")
    add("--read", choices=["valid", "test"], default="valid", help="figures (default: valid)")
    add("--refit", action="store_true", help="train again on train and valid, and read test")
    add("--choose", action="store_true", help="and, of every split, the best in validation")
    add_options(parser, seeds=3)
    args, options = parser.parse_known_args()
    try:
        named = [(name.strip(), own) for name, _, own in (v.partition(":") for v in args.variant)]
        if len(dict(named)) < len(named):
            raise ValueError(f"variants must have names of their own, got {args.variant}")
        if args.choose and (CHOSEN in dict(named) or not (args.refit or args.read == "test")):
            raise ValueError(
                f"--choose reads the test split, and makes the variant {CHOSEN!r}: "
                "give --read test or --refit, and variants other names"
            )
        runs = plan(args, dict(named), options, refit=args.refit)
        execute_all(runs, args.jobs)
        best = chosen(runs) if args.choose else {}
        again = [
            run._replace(variant=CHOSEN)
            for split, name in best.items()
            for run in runs
            if (run.split, run.variant) == (split, name)
        ]
        summary = summarize([*runs, *again], "test" if args.refit else args.read)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"protocol.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("protocol.py: stopped; the same command goes on") from None
    name = "refit" if args.refit else args.read
    about = provenance(runs, summary["read"], options)
    if best:
        about["chosen in validation"] = best
    write(args.out / f"{name}.json", to_json(summary | {"about": about}))
    write_csv(args.out / f"{name}.csv", as_rows(summary), about)
    headings, lines = as_lines(summary)
    write_markdown(args.out / f"{name}.md", TITLES[name], headings, lines, about, note(summary))
    show(summary, name)


def chosen(runs: Sequence[Run]) -> dict[str, str]:
    """Return, by split, the variant whose mean over seeds is best in validation."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        valid = from_json(run.folder / "metrics.json")["valid"]
        value = -valid["mae"] if "mae" in valid else valid["accuracy"]
        found.setdefault(run.split, {}).setdefault(run.variant, []).append(value)
    return {
        split: max(variants, key=lambda name: math.fsum(variants[name]))
        for split, variants in found.items()
    }


def as_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the figures, one row per variant."""
    rows = []
    for name, variant in summary["variants"].items():
        row = {"variant": name}
        for column, entry in variant["figures"].items():
            row |= {column: entry["mean"], f"{column}_sd": entry["sd"]}
        rows.append(row | {f"difference_{end}": x for end, x in variant["difference"].items()})
    return rows


def as_lines(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of the table."""
    names, main = SCORES | CLASSES | BRANCHES, summary["figure"]
    first, lines = next(iter(summary["variants"])), []
    columns = summary["variants"][first]["figures"]
    for variant, entry in summary["variants"].items():
        cells = [
            spread(found["mean"], found["sd"] if figure == main else math.nan)
            for figure, found in entry["figures"].items()
        ]
        difference, p = entry["difference"], f"{entry['difference']['p']:.3f}"
        ends = ["", ""] if variant == first else [gap(difference), p]
        lines.append([variant, *cells, *ends])
    return ["variant", *(names[column] for column in columns), "difference (95 %)", "p"], lines


def note(summary: dict[str, Any]) -> str:
    """Return what the differences are of."""
    main = (SCORES | CLASSES)[summary["figure"]]
    of_unit = "means over seeds by split" if summary["unit"] == "split" else "single runs"
    return (
        f"Difference to the first variant in {main}, over {summary['units']} {of_unit}: mean, "
        "95 % bootstrap interval, p of a permutation test."
    )


def show(summary: dict[str, Any], name: str) -> None:
    """Print the table."""
    runs = len(summary["runs"]) // len(summary["variants"])
    found = Table(title=f"{TITLES[name]}: mean ± sd of {runs} run(s)", caption=note(summary))
    headings, lines = as_lines(summary)
    for place, heading in enumerate(headings):
        found.add_column(heading, justify="right" if place else "left", no_wrap=bool(place))
    for line in lines:
        found.add_row(*line)
    console = Console()
    console.width = max(console.width, 110)
    console.print(found)


if __name__ == "__main__":
    main()
