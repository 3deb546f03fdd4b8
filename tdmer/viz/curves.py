"""A run over its epochs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tdmer.objective import TERMS
from tdmer.viz._style import line_style

if TYPE_CHECKING:
    import matplotlib.figure

_MEANINGS = {
    "task": "the prediction",
    "con": "C unlike C of others (CMD)",
    "rec": "reconstruction",
    "cp": "C like P (cosine)",
    "pp": "P like P of others (cosine)",
    "en": "C like enhanced P (cosine)",
    "f": "branches, and their ω",
    "own": "P alone, and its ω",
    "dc": "learning across C",
    "dp": "learning across enhanced P",
}
_METRICS = {
    "mae": "MAE",
    "corr": "r",
    "acc7": "Acc7",
    "acc2_non0": "Acc2 non0",
    "accuracy": "accuracy",
    "exact": "all labels right",
    "f1_micro": "F1 micro",
    "f1_weighted": "F1 weighted",
    "f1_macro": "F1 macro",
}


def training_curves(
    history: Sequence[Mapping[str, Any]], *, chosen: int | None = None
) -> "matplotlib.figure.Figure":
    """Draw losses, validation metrics and fusion weights over the epochs of one run.

    Left, on a logarithmic scale, the terms of the objective, unweighted, each with its meaning;
    those that are 0 throughout are left out. C are the common and P the private features of a
    modality, enhanced by the cross-modal attention, ω the estimated true class probability
    (:class:`~tdmer.objective.LossTerms`).

    In the middle, what there is of: MAE (mean absolute error), r (Pearson's), Acc7 (accuracy of
    seven classes) and Acc2 non0 (of the sign, without the labels that are 0), as
    :func:`~tdmer.metrics.sentiment_metrics` defines them; accuracy and F1 of classes or labels
    (:mod:`tdmer.metrics`). Right, the mean weight of every branch in the fusion.

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
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise ValueError("history must hold at least one epoch, got none")
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    losses, metrics, weights = figure.subplots(1, 3)
    losses.set(title="Training losses, unweighted", ylabel="loss", yscale="log")
    metrics.set(title="Validation", ylabel="metric")
    weights.set(title="Mean weight in the fusion, validation", ylabel="weight ω")
    terms = {name: f"{name}: {_MEANINGS[name]}" for name in ("task", *TERMS)}
    branches = {branch: branch for row in history for branch in row["weights"]}
    panels = (
        (losses, "train", terms, 2),
        (metrics, "valid", _METRICS, 4),
        (weights, "weights", branches, 4),
    )
    epochs = [row["epoch"] for row in history]
    for axes, part, labels, columns in panels:
        for number, (name, label) in enumerate(labels.items()):
            values = [row[part].get(name) for row in history]
            if any(values):
                every = max(1, len(epochs) // 10)
                axes.plot(epochs, values, label=label, markevery=every, **line_style(number))
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            place: dict[str, Any] = {
                "loc": "upper center",
                "bbox_to_anchor": (0.5, -0.12),
                "frameon": False,
            }
            axes.legend(**place, ncols=columns, fontsize="small", handlelength=3.2)
        if chosen is not None:
            axes.axvline(chosen, color="0.7", linestyle="--", zorder=0)
    weights.set_ylim(bottom=0)
    return figure
