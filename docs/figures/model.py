"""Draw the diagram of the model: python docs/figures/model.py writes docs/_static/model.svg."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

COMMON, PRIVATE, PLAIN, LOSS = "#cfe3f5", "#fbe0c6", "#ececec", "#b03030"
MODALITIES = {"text": 5.0, "audio": 3.0, "video": 1.0}
OUT = Path(__file__).parents[1] / "_static" / "model.svg"


def main() -> None:
    """Draw the parts from left to right and write the picture."""
    plt.rcParams.update({"svg.hashsalt": "tdmer", "font.size": 9, "mathtext.fontset": "dejavusans"})
    figure, axes = plt.subplots(figsize=(9.2, 4.9), layout="constrained")
    axes.set(xlim=(0, 16.4), ylim=(-0.65, 8.15), aspect="equal")
    axes.axis("off")

    box(axes, 5.4, 7.0, 1.7, 0.9, "common\nencoder", COMMON)
    box(axes, 7.95, 7.0, 1.5, 0.9, "mean over\nmodalities", COMMON)
    for name, y in MODALITIES.items():
        first = name == "text"
        box(axes, 0.75, y, 1.3, 0.9, name, PLAIN)
        box(axes, 2.85, y, 1.7, 0.9, "normalise,\nConv1d", PLAIN)
        box(axes, 5.4, y, 1.7, 0.9, "private\nencoder", PRIVATE)
        arrow(axes, (1.4, y), (2.0, y))
        arrow(axes, (3.7, y), (4.55, y))
        arrow(axes, (6.25, y), (7.2, y), "$P_m$" if first else "")
        arrow(axes, (8.7, y), (9.95, y), "$P_m^e$" if first else "")
    axes.plot([4.1] * 4, [7.0, *MODALITIES.values()], color="0.25", linewidth=0.9)
    axes.plot([4.1] * 3, list(MODALITIES.values()), ".", color="0.25", markersize=5)
    arrow(axes, (4.1, 7.0), (4.55, 7.0))
    axes.text(3.95, 5.95, "$X_m$", ha="right", va="center")
    arrow(axes, (6.25, 7.0), (7.2, 7.0), "$C_m$")
    arrow(axes, (8.7, 7.0), (9.95, 7.0), "$C$")
    box(
        axes,
        7.95,
        3.0,
        1.5,
        5.2,
        "cross-\nmodal\nattention\n\n(queries of\none, keys\nof the\nothers)",
        PRIVATE,
    )

    for branch, y in {"C": 7.0, **MODALITIES}.items():
        color = COMMON if branch == "C" else PRIVATE
        box(axes, 10.95, y + 0.36, 2.0, 0.62, "class head  $z$", color)
        box(axes, 10.95, y - 0.36, 2.0, 0.62, r"confidence  $\omega$", color)
        arrow(axes, (11.95, y), (12.86, 4.0 + (y - 4.0) * 0.14))
    box(axes, 13.6, 4.0, 1.46, 1.2, "$h$: sum of\n$\\omega$ · branch", PLAIN)
    arrow(axes, (14.33, 4.0), (14.65, 4.0))
    box(axes, 15.3, 4.0, 1.3, 0.9, "MLP,\nsoftmax", PLAIN)
    arrow(axes, (15.3, 3.55), (15.3, 2.9))
    axes.text(15.3, 2.6, "prediction $y$", ha="center", va="center")

    for x, y, text in (
        (5.4, 7.75, r"$L_{con}$ (2, 3)"),
        (5.75, 6.0, "$L_{cp}$ (5); $L_{rec}$ (4) by private\ndecoders of $[C_m, P_m]$"),
        (5.4, 0.1, r"$L_{pp}$ (6)"),
        (7.95, 7.75, r"$L_{dc}$ (7, 8)"),
        (7.95, 0.1, r"$L_{dp}$ (7, 8)   $L_{en}$ (9)"),
        (10.95, 0.0, r"$L_f$ (10, 11, 12)"),
        (15.3, 4.8, r"$L_{task}$ (13)"),
    ):
        axes.text(x, y, text, color=LOSS, ha="center", va="center", fontsize=9)
    figure.savefig(OUT, metadata={"Date": None}, facecolor="white")


def box(axes: Axes, x: float, y: float, w: float, h: float, text: str, color: str) -> None:
    """Draw a labelled box around a centre."""
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=style, fc=color, ec="0.35", lw=0.9)
    )
    axes.text(x, y, text, ha="center", va="center", linespacing=1.25)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
) -> None:
    """Draw an arrow, with a label above its middle."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            lw=0.9,
            color="0.25",
            shrinkA=0,
            shrinkB=0,
        )
    )
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12
    axes.text(*middle, text, ha="center", va="bottom", fontsize=9)


if __name__ == "__main__":
    main()
