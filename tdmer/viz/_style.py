"""What the pictures have in common: lines told apart without colour, tables of shades, outputs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tdmer.model import TDMEROutput

if TYPE_CHECKING:
    import matplotlib.axes

# Okabe and Ito's colours, whose greys differ too, the farthest apart first.
COLORS = ("#000000", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (8, 2)))
DARK, LIGHT = "0.35", "0.9"

Outputs = TDMEROutput | Sequence[TDMEROutput]


def line_style(number: int) -> dict[str, Any]:
    """Return colour, line and marker of a curve, which differ in grey as well as in colour.

    Args:
        number: Of the curve, from 0 on.

    Returns:
        Arguments of matplotlib's ``Axes.plot``.

    Example:
        >>> line_style(1)["linestyle"], line_style(1)["marker"]
        ('--', 's')
    """
    # Lines come around before markers do, and markers are then hollow.
    kinds = {"color": COLORS, "linestyle": LINES, "marker": MARKERS}
    found = {name: kind[number % len(kind)] for name, kind in kinds.items()}
    hollow = {"markerfacecolor": "white"} if number >= len(MARKERS) else {}
    return found | hollow | {"markersize": 4, "linewidth": 1.4}


def axes_or_own(
    axes: "matplotlib.axes.Axes | None", width: float, height: float
) -> "matplotlib.axes.Axes":
    """Return the axes given, or those of a new figure of this size in inches."""
    from matplotlib.figure import Figure

    if axes is None:
        return Figure(figsize=(width, height), layout="constrained").add_subplot()
    return axes


def draw_table(
    axes: Any,
    shades: NDArray[Any],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Draw a table whose cells are the darker the nearer to 1, with a text in each."""
    axes.imshow(np.nan_to_num(shades), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            color = "white" if shades[row, column] > 0.55 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), columns, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)


def batches(outputs: Outputs) -> Sequence[TDMEROutput]:
    """Return the outputs of all batches, at least one."""
    every = [outputs] if isinstance(outputs, TDMEROutput) else outputs
    if not every:
        raise ValueError("outputs must hold at least one batch, got none")
    return every


def joined(outputs: Outputs, read: Callable[[TDMEROutput], Tensor]) -> Tensor:
    """Return a part of the outputs of all batches, on the CPU."""
    return torch.cat([read(output) for output in batches(outputs)]).detach().cpu()


def of_branch(outputs: Outputs, part: str, branch: str) -> Tensor:
    """Return the weights or logits of a branch, of all batches."""
    return joined(outputs, lambda output: getattr(output, part)[branch])
