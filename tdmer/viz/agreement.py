"""What is predicted, and how sure the branches are, against what is true."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from tdmer._checks import check_count
from tdmer.metrics import classification_metrics, sentiment_metrics
from tdmer.tasks import Classification, MultiLabel, Sentiment
from tdmer.viz._style import Outputs, axes_or_own, batches, draw_table, line_style, of_branch

if TYPE_CHECKING:
    import matplotlib.axes


def confusion_matrix(
    pred: Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"],
    true: Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"],
    *,
    classes: Sequence[str] | None = None,
    axes: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw how many samples of every class are taken for which.

    A row is a true class: the numbers are samples, and the shade is their share of the row. The
    accuracy is in the title.

    Args:
        pred: ``(n,)`` predicted classes, whole numbers from 0 on.
        true: ``(n,)`` true classes; -100 or NaN: missing, the sample is left out.
        classes: Names of the classes, such as ``task.names``; None: their numbers.
        axes: Where to draw; None: in a figure of its own.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: As :func:`~tdmer.metrics.classification_metrics`, no sample is labelled, or a
            class is below 0 or has no name.

    Example:
        >>> pred, true = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])
        >>> axes = confusion_matrix(pred, true, classes=["calm", "angry"])
        >>> axes.get_title()
        '4 samples, accuracy 0.750'
    """
    accuracy = classification_metrics(pred, true)["accuracy"]
    p, t = (torch.as_tensor(side).detach().cpu().double().numpy() for side in (pred, true))
    known = ~np.isnan(t) & (t != Classification.missing)
    if not known.any():
        raise ValueError("true must hold at least one label, got none")
    pairs = np.stack([t[known], p[known]]).astype(int)
    names = [str(number) for number in range(pairs.max() + 1)] if classes is None else classes
    if pairs.min() < 0 or pairs.max() >= len(names):
        wrong = pairs.min() if pairs.min() < 0 else pairs.max()
        raise ValueError(f"pred and true must be classes in [0, {len(names)}), got {wrong}")
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, tuple(pairs), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axes = axes_or_own(axes, 1.6 + 0.65 * len(names), 1.2 + 0.55 * len(names))
    draw_table(axes, shares, [[str(count) for count in row] for row in counts], names, names)
    if max(map(len, names)) > 4:
        axes.tick_params(axis="x", rotation=40)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{known.sum()} samples, accuracy {accuracy:.3f}")
    return axes


def predicted_scores(
    pred: Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"],
    true: Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"],
    *,
    axes: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw predicted scores over the true ones, with the line on which they would be equal.

    Args:
        pred: ``(n,)`` predictions.
        true: ``(n,)`` labels; NaN: missing, the sample is left out.
        axes: Where to draw; None: in a figure of its own.

    Returns:
        The axes; MAE (mean absolute error) and r (Pearson's) are in the title.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: As :func:`~tdmer.metrics.sentiment_metrics`, or no sample is labelled.

    Example:
        >>> axes = predicted_scores(np.array([1.5, -0.5, 2.0]), np.array([1.0, -1.0, 2.5]))
        >>> axes.get_title()
        '3 samples, MAE 0.500, r 0.969'
    """
    found = sentiment_metrics(pred, true)
    p, t = (torch.as_tensor(side).detach().cpu().double().numpy() for side in (pred, true))
    p, t = p[~np.isnan(t)], t[~np.isnan(t)]
    if not len(t):
        raise ValueError("true must hold at least one label, got none")
    axes = axes_or_own(axes, 4.6, 4.6)
    axes.scatter(t, p, s=14, facecolors="none", edgecolors="0.25", linewidths=0.7, alpha=0.7)
    ends = [min(p.min(), t.min()), max(p.max(), t.max())]
    axes.plot(ends, ends, color="black", linestyle="--", linewidth=1, label="equal")
    axes.set(xlabel="true score", ylabel="predicted score", aspect="equal")
    axes.set_title(f"{len(t)} samples, MAE {found['mae']:.3f}, r {found['corr']:.3f}")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    return axes


def reliability(
    outputs: Outputs,
    labels: Tensor,
    task: Classification | Sentiment | MultiLabel,
    *,
    groups: int = 5,
    axes: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw the estimated true class probability ω of every branch against the true one.

    The labelled samples that have the branch are put into groups of equal size by their ω; a mark
    is the mean ω and the mean true class probability of a group. On the dashed line ω says what is
    so; below it, the branch is less sure of the truth than it believes.

    Args:
        outputs: What the model returned, of one batch or several.
        labels: Of all samples, in order, as the task takes them.
        task: What the labels mean.
        groups: How many groups a branch has.
        axes: Where to draw; None: in a figure of its own.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no batch, or labels are not such as the task takes, one per sample.

    Example:
        >>> from tdmer import TDMER
        >>> inputs = {"text": torch.rand(8, 5, 4), "audio": torch.rand(8, 6, 3)}
        >>> output = TDMER({"text": 4, "audio": 3}, 2)(inputs)
        >>> axes = reliability(output, torch.tensor([0, 1] * 4), Classification(2))
        >>> axes.get_legend_handles_labels()[1]
        ['as sure as right', 'common', 'text', 'audio']
    """
    check_count("groups", groups)
    labels = labels.cpu()
    known = task.labelled(labels)
    axes = axes_or_own(axes, 4.6, 4.6)
    axes.axline((0, 0), slope=1, color="0.5", linestyle="--", linewidth=1, label="as sure as right")
    highest = 0.0
    for number, branch in enumerate(batches(outputs)[0].weights):
        weight = of_branch(outputs, "weights", branch).float()
        logits = of_branch(outputs, "branch_logits", branch)
        tcp = task.true_class_probability(logits, labels)
        counted = known & (weight > 0)  # 0 where the sample lacks the modality
        weight, tcp = weight[counted], tcp[counted]
        parts = [part for part in weight.argsort().tensor_split(groups) if len(part)]
        means = [[x[part].mean().item() for part in parts] for x in (weight, tcp)]
        axes.plot(*means, label=branch, **line_style(number))
        highest = max([highest, *means[0], *means[1]])
    end = min(1, np.ceil(10 * highest + 0.5) / 10)
    axes.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    axes.set(xlabel="estimated true class probability ω", ylabel="true class probability")
    axes.legend(loc="upper left", fontsize="small", handlelength=3.2)
    axes.grid(alpha=0.3)
    return axes
