"""Draw the diagram of the model: python docs/figures/model.py writes docs/_static/model*.svg."""

from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

MODALITIES = {"text": 5.0, "audio": 3.0, "video": 1.0}
OUT = Path(__file__).parents[1] / "_static"


class Colors(NamedTuple):
    """Fills of boxes, then lines, text and losses, on a background."""

    common: str
    private: str
    plain: str
    line: str
    text: str
    loss: str
    ground: str


LIGHT = Colors("#cfe3f5", "#fbe0c6", "#ececec", "#404040", "black", "#b03030", "white")
DARK = Colors("#1f4263", "#5f4020", "#34373b", "#b0b4b8", "#e6e8ea", "#ff8f85", "#131416")


def main() -> None:
    """Draw the parts from left to right and write both pictures."""
    plt.rcParams.update({"svg.hashsalt": "tdmer", "font.size": 9, "mathtext.fontset": "dejavusans"})
    for name, colors in (("model.svg", LIGHT), ("model-dark.svg", DARK)):
        plt.rcParams["text.color"] = colors.text
        figure, axes = plt.subplots(figsize=(9.4, 5.1), layout="constrained")
        axes.set(xlim=(0, 17.0), ylim=(-1.1, 8.15), aspect="equal")
        axes.axis("off")
        draw(axes, colors)
        figure.savefig(OUT / name, metadata={"Date": None}, facecolor=colors.ground)


def draw(axes: Axes, colors: Colors) -> None:
    """Draw every part, arrow and loss."""

    def box(x: float, y: float, w: float, h: float, text: str, fill: str, size: int = 9) -> None:
        style = "round,pad=0,rounding_size=0.12"
        corner = (x - w / 2, y - h / 2)
        axes.add_patch(
            FancyBboxPatch(corner, w, h, boxstyle=style, fc=fill, ec=colors.line, lw=0.9)
        )
        axes.text(x, y, text, ha="center", va="center", linespacing=1.25, fontsize=size)

    def arrow(
        start: tuple[float, float], end: tuple[float, float], text: str = "", style: str = "-"
    ) -> None:
        options = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
        axes.add_patch(FancyArrowPatch(start, end, lw=0.9, ls=style, color=colors.line, **options))
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12
        axes.text(*middle, text, ha="center", va="bottom")

    box(5.4, 7.0, 1.7, 0.9, "common\nencoder", colors.common)
    box(8.35, 7.0, 1.5, 0.9, "mean over\nmodalities", colors.common)
    for name, y in MODALITIES.items():
        first = name == "text"
        box(0.75, y, 1.3, 0.9, name, colors.plain)
        box(2.85, y, 1.7, 0.9, "normalise,\nConv1d", colors.plain)
        box(5.4, y, 1.7, 0.9, "private\nencoder", colors.private)
        box(5.85, y - 0.97, 2.1, 0.56, r"own head $z$, $\omega$", colors.private, 8)
        arrow((1.4, y), (2.0, y))
        arrow((3.7, y), (4.55, y))
        arrow((6.25, y), (7.6, y), "$P_m$" if first else "")
        arrow((6.65, y), (6.65, y - 0.69), style="--")
        arrow((9.1, y), (10.35, y), "$P_m^e$" if first else "")
    axes.plot([4.1] * 4, [7.0, *MODALITIES.values()], color=colors.line, linewidth=0.9)
    axes.plot([4.1] * 3, list(MODALITIES.values()), ".", color=colors.line, markersize=5)
    arrow((4.1, 7.0), (4.55, 7.0))
    axes.text(3.95, 5.95, "$X_m$", ha="right", va="center")
    arrow((6.25, 7.0), (7.6, 7.0), "$C_m$")
    arrow((9.1, 7.0), (10.35, 7.0), "$C$")
    attention = "cross-\nmodal\nattention\n\n(queries of\none, keys\nof the\nothers)"
    box(8.35, 3.0, 1.5, 5.2, attention, colors.private)

    for branch, y in {"C": 7.0, **MODALITIES}.items():
        fill = colors.common if branch == "C" else colors.private
        box(11.35, y + 0.36, 2.0, 0.62, "class head  $z$", fill)
        box(11.35, y - 0.36, 2.0, 0.62, r"confidence  $\omega$", fill)
        arrow((12.35, y), (13.16, 4.0 + (y - 4.0) * 0.2))
    box(
        14.05,
        4.0,
        1.76,
        1.7,
        "$h$ = sum of\n$\\omega$ · branch,\nand mean of\n$z$ by $\\omega$",
        colors.plain,
    )
    arrow((14.93, 4.0), (15.3, 4.0))
    box(16.1, 4.0, 1.6, 1.4, "mean of\nMLP($h$) and\nthe other,\nsoftmax", colors.plain)
    arrow((16.1, 3.3), (16.1, 2.65))
    axes.text(16.1, 2.35, "prediction $y$", ha="center", va="center")

    for x, y, text in (
        (5.4, 7.75, r"$L_{con}$ (2, 3)"),
        (5.75, 6.0, "$L_{cp}$ (5); $L_{rec}$ (4) by private\ndecoders of $[C_m, P_m]$"),
        (5.85, -0.62, r"$L_{pp}$ (6)   $L_{own}$"),
        (8.35, 7.75, r"$L_{dc}$ (7, 8)"),
        (8.45, 0.05, r"$L_{dp}$ (7, 8)   $L_{en}$ (9)"),
        (11.35, 0.0, r"$L_f$ (10, 11, 12)"),
        (16.1, 5.1, r"$L_{task}$ (13)"),
    ):
        axes.text(x, y, text, color=colors.loss, ha="center", va="center")


if __name__ == "__main__":
    main()
