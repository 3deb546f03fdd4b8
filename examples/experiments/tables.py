"""Tables that say where they come from: CSV to compute with, Markdown to read."""

import csv
import io
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runs import Run

sys.path.append(str(Path(__file__).parents[1]))
from run_folder import write


def provenance(runs: Sequence[Run], read: str, shared: Sequence[str]) -> dict[str, Any]:
    """Return what the figures of runs depend on, in short.

    Their data by SHA-256, the configuration of the first variant and what the others change, splits
    and seeds, and versions. All runs begin with the options that they share.
    """
    first = json.loads((runs[0].commands()[0].out / "run.json").read_bytes())
    training = {name: x for name, x in first.get("training", {}).items() if name != "seed"}
    kept = {name: x for name, x in first["samples"].items() if name != "split"}
    parts = {name: first[name] for name in ("model", "task", "loss") if name in first}
    return {
        "figures of": f"the {read} split",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data, SHA-256": first["data"],
        "samples": kept,
        "splits": list(dict.fromkeys(run.split for run in runs)),
        "seeds": sorted({run.seed for run in runs}),
        f"configuration of {runs[0].variant!r}": parts | {"training": training},
        "variants": {run.variant: shlex.join(run.options[len(shared) :]) for run in runs},
        "versions": first["versions"] | {"python": platform.python_version()},
    }


def origin(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what figures of folders of train.py depend on, in short."""
    configs = [json.loads((folder / "run.json").read_bytes()) for folder in folders]
    first = configs[0]
    return {
        "data, SHA-256": first["data"],
        "samples": first["samples"],
        "splits": sorted({config["samples"]["split"] for config in configs}),
        "seeds": sorted({config["training"]["seed"] for config in configs}),
        "configuration of the first run": {
            name: first[name] for name in ("model", "task", "loss", "training")
        },
        "versions": first["versions"],
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write figures, with where they come from in lines that begin with #.

    ``pandas.read_csv(path, comment="#")`` and ``numpy.genfromtxt`` leave such lines out.
    """
    text = io.StringIO(newline="")
    for name, value in about.items():
        text.write(f"# {name}: {as_text(value)}\n")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of what :func:`write_csv` wrote."""
    lines = path.read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def write_markdown(
    path: Path,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    about: Mapping[str, Any],
    note: str = "",
) -> None:
    """Write a table with its title, a note, and where the figures come from."""
    lines = [f"# {title}", "", table(headings, rows)]
    if note:
        lines += [note, ""]
    lines += [f"- {name}: `{as_text(value)}`" for name, value in about.items()]
    write(path, ("\n".join(lines) + "\n").encode())


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown with columns of one width, as it is also printed."""
    lines = [[heading.replace("\n", " ") for heading in headings], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    padded = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([padded[0], rule, *padded[1:], ""])


def as_text(value: Any) -> str:
    """Return a value on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def spread(mean: float, sd: float, digits: int = 3) -> str:
    """Return a mean with its deviation, nothing where there is none."""
    if mean != mean:  # NaN
        return ""
    return f"{mean:.{digits}f}" + ("" if sd != sd else f" ± {sd:.{digits}f}")


def gap(difference: Mapping[str, float]) -> str:
    """Return a difference with its interval."""
    mean, low, high = (difference[name] for name in ("mean", "low", "high"))
    return f"{mean:+.3f}" + ("" if low != low else f" ({low:+.3f} to {high:+.3f})")
