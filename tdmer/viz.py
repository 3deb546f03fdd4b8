"""Pictures; matplotlib (extra ``viz``) is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tdmer.objective import TERMS

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
        A figure with three axes, which belongs to no window: ``figure.savefig("training.png")``.

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
