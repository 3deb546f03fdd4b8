"""Pictures; matplotlib (extra ``viz``) is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tdmer.objective import TERMS
from tdmer.prediction import Prediction, shown

if TYPE_CHECKING:
    import matplotlib.figure

_METRICS = {"mae": "MAE", "corr": "r", "acc7": "Acc7", "acc2_non0": "Acc2 non0"}


def training_curves(
    history: Sequence[Mapping[str, Any]], *, chosen: int | None = None
) -> "matplotlib.figure.Figure":
    """Draw losses, validation metrics and fusion weights over the epochs of one run.

    Left, on a logarithmic scale, the terms of the objective, unweighted; those that are 0
    throughout are left out. ``task`` is the loss of the prediction; ``con`` the discrepancy of the
    common features, ``rec`` reconstruction; ``cp``, ``pp``, ``en`` the similarity of common and
    private, of private and private, of common and enhanced features; ``f`` classification and
    confidence of the branches; ``dc``, ``dp`` cross-modal learning of common and of private
    features (:class:`~tdmer.objective.LossTerms`).

    In the middle MAE (mean absolute error), r (Pearson's), Acc7 (accuracy of seven classes) and
    Acc2 non0 (of the sign, without the labels that are 0), as
    :func:`~tdmer.metrics.sentiment_metrics` defines them; right, the mean weight of every branch in
    the fusion.

    Args:
        history: One mapping per epoch, in order, such as ``history`` in the ``metrics.json`` of
            ``examples/train.py``: the number ``"epoch"``, and under ``"train"``, ``"valid"`` and
            ``"weights"`` a mapping of names to values. None or NaN leaves a gap, and what is not
            there is not drawn.
        chosen: An epoch to mark with a dashed line.

    Returns:
        A figure with three axes, of no window; ``figure.savefig("training.png")`` writes it.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no epoch.

    Example:
        >>> parts = {"train": {"task": 1.9}, "valid": {"mae": 1.2}, "weights": {"text": 0.4}}
        >>> figure = training_curves([{"epoch": 0, **parts}, {"epoch": 1, **parts}], chosen=1)
        >>> [axes.get_title() for axes in figure.axes][:2]
        ['Training losses, unweighted', 'Validation']
    """
    from matplotlib.figure import Figure

    if not history:
        raise ValueError("history must hold at least one epoch, got none")
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    losses, metrics, weights = figure.subplots(1, 3)
    losses.set(title="Training losses, unweighted", yscale="log")
    metrics.set(title="Validation")
    weights.set(title="Mean weight of each branch in the fusion, validation")
    branches = {branch: branch for row in history for branch in row["weights"]}
    panels = (
        (losses, "train", {name: name for name in ("task", *TERMS)}),
        (metrics, "valid", _METRICS),
        (weights, "weights", branches),
    )
    epochs = [row["epoch"] for row in history]
    for axes, part, labels in panels:
        for name, label in labels.items():
            values = [row[part].get(name) for row in history]
            if any(values):
                axes.plot(epochs, values, label=label)
        axes.set(xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
        if chosen is not None:
            axes.axvline(chosen, color="0.7", linestyle="--", zorder=0)
    weights.set_ylim(bottom=0)
    return figure


def contributions(prediction: Prediction) -> "matplotlib.figure.Figure":
    """Draw one prediction, and what each branch contributes to it.

    Left, the probability of every class value, class or label. Of a scale, a dashed line marks the
    score; of classes, what is predicted is dark; of labels, a dashed line is where that begins.
    Right, the weight of every branch in the fusion, and hatched the confidence in the modality by
    itself, before it attends to others. Below its name stands what the branch predicts alone.

    Args:
        prediction: What :class:`~tdmer.prediction.Predictor` returns for a sample.

    Returns:
        A figure with two axes, of no window; ``figure.savefig("clip.png")`` writes it.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from tdmer.prediction import Contribution
        >>> glad = {"glad": 0.75, "sad": 0.25}
        >>> branches = {"text": Contribution(0.5, "glad", glad, 0.625)}
        >>> prediction = Prediction("clip", "Classification", "glad", glad, branches, ["audio"])
        >>> figure = contributions(prediction)
        >>> [axes.get_title() for axes in figure.axes]
        ['clip: glad', 'Branches, with what each predicts alone']
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    alone = {name: shown(branch.prediction) for name, branch in prediction.branches.items()}
    alone |= dict.fromkeys(prediction.missing, "missing")
    size = max(len(prediction.probabilities), 2 * len(alone))
    figure = Figure(figsize=(10, 1.8 + 0.28 * size), layout="constrained")
    outcome, parts = figure.subplots(1, 2)
    # Names are no formulas, though they may hold dollars, as those of MOSI's clips do.
    outcome.set_title(f"{prediction.id}: {shown(prediction.prediction)}", parse_math=False)
    _draw_outcome(outcome, prediction)

    weight: dict[str, Any] = {"color": "0.35", "label": "weight in the fusion"}
    confidence: dict[str, Any] = {"hatch": "///", "facecolor": "0.9", "edgecolor": "0.35"}
    confidence["label"] = "confidence by itself"
    for row, branch in enumerate(prediction.branches.values()):
        parts.barh(row - 0.2, branch.weight, 0.36, **weight)
        if branch.confidence is not None:
            parts.barh(row + 0.2, branch.confidence, 0.36, **confidence)
    labels = [f"{name}\n{said}" for name, said in alone.items()]
    parts.set_yticks(range(len(alone)), labels, parse_math=False)
    parts.set(title="Branches, with what each predicts alone", xlabel="weight, confidence")
    parts.set(xlim=(0, 1), ylim=(len(alone) - 0.5, -0.5))
    handles = [*outcome.lines, Patch(**weight), Patch(**confidence)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_outcome(axes: Any, prediction: Prediction) -> None:
    names, values = list(prediction.probabilities), list(prediction.probabilities.values())
    decision = prediction.prediction
    if isinstance(decision, float):
        scale = [float(name) for name in names]
        gap = min(b - a for a, b in pairwise(scale))
        axes.bar(scale, values, 0.8 * gap, color="0.7")
        axes.axvline(decision, color="black", linestyle="--", label="score")
        axes.set_xticks(scale, names)
        axes.set(xlabel="class value", ylabel="probability")
        return
    chosen = [decision] if isinstance(decision, str) else decision
    colors = ["0.35" if name in chosen else "0.7" for name in names]
    axes.barh(range(len(names)), values, 0.7, color=colors)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlim=(0, 1), xlabel="probability")
    axes.invert_yaxis()
    if not isinstance(decision, str):
        axes.axvline(0.5, color="black", linestyle="--", label="predicted from here")
