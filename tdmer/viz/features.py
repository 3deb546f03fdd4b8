"""Where the features of the modalities lie, and which learn from which."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tdmer._checks import check_choice, check_count
from tdmer.viz._style import COLORS, DARK, MARKERS, Outputs, axes_or_own, batches, joined

if TYPE_CHECKING:
    import matplotlib.axes


def subspaces(
    outputs: Outputs,
    *,
    method: str = "pca",
    samples: int = 200,
    seed: int = 0,
    axes: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw where common and private features lie, in two dimensions, as Fig. 2 of the paper.

    One mark for each sample and modality: filled for ``C_m``, hollow for ``P_m``, both pooled over
    the steps, with a shape and colour for every modality. Drawn for a model trained without the
    decoupling losses, and for one trained with them, it shows what they do: common features are to
    lie together, and private ones apart from these and from each other.

    Args:
        outputs: What the model returned, of one batch or several.
        method: ``"pca"``, a projection in which distances keep their meaning; or ``"tsne"``, in
            which neighbours stay neighbours and nothing else does.
        samples: How many samples to draw at most, picked at random.
        seed: Of that, and of t-SNE.
        axes: Where to draw; None: in a figure of its own.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib or scikit-learn is not installed.
        ValueError: There is no batch, or ``method`` is another.

    Example:
        >>> import torch
        >>> from tdmer import TDMER
        >>> inputs = {"text": torch.rand(8, 5, 4), "audio": torch.rand(8, 6, 3)}
        >>> axes = subspaces(TDMER({"text": 4, "audio": 3}, 2)(inputs))
        >>> axes.get_legend_handles_labels()[1]
        ['C text', 'P text', 'C audio', 'P audio']

    Source:
        Xu et al., "TDMER", ICASSP 2025, Fig. 2.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    check_choice("method", method, ("pca", "tsne"))
    check_count("samples", samples)
    present = joined(outputs, lambda output: output.present).numpy()
    parts = {
        "C": joined(outputs, lambda output: output.common.pooled).float().numpy(),
        "P": joined(outputs, lambda output: output.private.pooled).float().numpy(),
    }
    picked = np.zeros(len(present), bool)
    picked[np.random.default_rng(seed).permutation(len(present))[:samples]] = True
    groups = {
        (part, number, m): x[picked & present[:, number], number]
        for number, m in enumerate(batches(outputs)[0].masks)
        for part, x in parts.items()
    }
    every = np.concatenate(list(groups.values()))
    if method == "pca":
        projection = PCA(2).fit(every)
        places = projection.transform(every)
        shares = (
            f" ({share:.0%} of the variance)" for share in projection.explained_variance_ratio_
        )
        labels = [f"PCA {axis}{share}" for axis, share in enumerate(shares, 1)]
    else:
        near = min(30.0, (len(every) - 1) / 3)
        places = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(every)
        labels = ["t-SNE 1", "t-SNE 2"]
    axes = axes_or_own(axes, 5, 4.8)
    ends = np.cumsum([len(x) for x in groups.values()])
    for (part, number, m), xy in zip(groups, np.split(places, ends[:-1]), strict=True):
        color = COLORS[number % len(COLORS)]
        axes.scatter(
            xy[:, 0],
            xy[:, 1],
            s=18,
            marker=MARKERS[number % len(MARKERS)],
            facecolors=color if part == "C" else "none",
            edgecolors=color,
            linewidths=0.8,
            alpha=0.75,
            label=f"{part} {m}",
        )
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if method == "tsne":  # Its distances mean nothing.
        axes.set(xticks=[], yticks=[])
    place: dict[str, Any] = {
        "loc": "upper center",
        "bbox_to_anchor": (0.5, -0.11),
        "frameon": False,
    }
    axes.legend(**place, ncols=len(groups) // 2, fontsize="small", handletextpad=0.2)
    return axes


def edge_graph(
    outputs: Outputs, *, part: str = "common", axes: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw the weights of the dynamic cross-modal learning (Eq. 7) as a directed graph.

    An arrow from p to q says how much q learns from p: the mean weight, written beside it, is also
    its width, over the samples that have all modalities, whose weights sum to 1; without any such
    sample, over all. Below stands what every arrow would weigh if none were preferred.

    Args:
        outputs: What the model returned, of one batch or several.
        part: ``"common"``, the edges of L_dc, or ``"enhanced"``, those of L_dp.
        axes: Where to draw; None: in a figure of its own.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no batch, ``part`` is another, or there is but one modality.

    Example:
        >>> import torch
        >>> from tdmer import TDMER
        >>> inputs = {"text": torch.rand(8, 5, 4), "audio": torch.rand(8, 6, 3)}
        >>> axes = edge_graph(TDMER({"text": 4, "audio": 3}, 2)(inputs))
        >>> axes.get_title()
        'common features: who learns from whom'
    """
    from matplotlib.patches import FancyArrowPatch

    check_choice("part", part, ("common", "enhanced"))
    names = list(batches(outputs)[0].masks)
    if len(names) < 2:
        raise ValueError(f"outputs must be of two modalities or more, got {names}")
    edges = joined(outputs, lambda output: getattr(output, part).edges).float()
    whole = joined(outputs, lambda output: output.present).all(dim=1)
    weights = (edges[whole] if whole.any() else edges).mean(dim=0).tolist()
    axes = axes_or_own(axes, 4.6, 4.4)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / len(names)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    bend = 0.22
    for p, start in enumerate(places):
        for q, end in enumerate(places):
            if p == q or not weights[p][q] > 0:
                continue
            arrow = FancyArrowPatch(
                start,
                end,
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=16,
                shrinkA=30,
                shrinkB=30,
                linewidth=0.6 + 8 * weights[p][q],
                color=DARK,
                label=f"{names[p]}→{names[q]}",
            )
            axes.add_patch(arrow)
            # Where the bow is highest.
            x, y = (start + end) / 2 + bend / 2 * np.array([1, -1]) * (end - start)[::-1]
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
            axes.text(x, y, f"{weights[p][q]:.2f}", ha="center", va="center", bbox=box)
    for name, (x, y) in zip(names, places, strict=True):
        box = {"boxstyle": "round,pad=0.5", "facecolor": "0.9", "edgecolor": "black"}
        axes.text(x, y, name, ha="center", va="center", bbox=box, parse_math=False)
    even = 1 / (len(names) * (len(names) - 1))
    axes.set_title(f"{part} features: who learns from whom")
    low, high = places[:, 1].min() - 0.35, places[:, 1].max() + 0.3
    axes.set(xlim=(-1.4, 1.4), ylim=(low, high), aspect="equal")
    axes.text(0, low, f"spread evenly: {even:.2f} each", ha="center")
    axes.axis("off")
    return axes
