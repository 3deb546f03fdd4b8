"""What the branches contribute: to one prediction, to those of a class, step by step."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tdmer.prediction import Prediction, Predictor, shown
from tdmer.tasks import Classification, MultiLabel, Sentiment
from tdmer.viz._style import DARK, LIGHT, Outputs, axes_or_own, batches, draw_table, of_branch

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


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

    weight: dict[str, Any] = {"color": DARK, "label": "weight in the fusion"}
    confidence: dict[str, Any] = {"hatch": "///", "facecolor": LIGHT, "edgecolor": DARK}
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
    colors = [DARK if name in chosen else "0.7" for name in names]
    axes.barh(range(len(names)), values, 0.7, color=colors)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlim=(0, 1), xlabel="probability")
    axes.invert_yaxis()
    if not isinstance(decision, str):
        axes.axvline(0.5, color="black", linestyle="--", label="predicted from here")


def class_contributions(
    outputs: Outputs,
    labels: Tensor,
    task: Classification | Sentiment | MultiLabel,
    *,
    axes: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    r"""Draw the mean weight in the fusion of every branch, for the samples of every class.

    Of scores, the class is the nearest class value; of several labels, a sample counts for each
    that it has. The mean is over the samples that have the branch.

    Args:
        outputs: What the model returned, of one batch or several.
        labels: Of all samples, in order, as the task takes them.
        task: What the labels mean.
        axes: Where to draw; None: in a figure of its own.

    Returns:
        The axes, with a row for each branch, and a column for each class with its number of
        samples.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no batch, or labels are not one per sample.

    Example:
        >>> from tdmer import TDMER
        >>> inputs = {"text": torch.rand(8, 5, 4), "audio": torch.rand(8, 6, 3)}
        >>> output = TDMER({"text": 4, "audio": 3}, 2)(inputs)
        >>> task = Classification(2, classes=["calm", "angry"])
        >>> axes = class_contributions(output, torch.tensor([0, 0, 0, 0, 0, 1, 1, 1]), task)
        >>> [tick.get_text() for tick in axes.get_xticklabels()]
        ['calm\nn = 5', 'angry\nn = 3']
    """
    labels = labels.cpu()
    if isinstance(task, MultiLabel):
        member = labels == 1
    elif isinstance(task, Sentiment):
        nearest = (labels.unsqueeze(1) - task.values.cpu()).abs().argmin(dim=1)
        member = F.one_hot(nearest, task.num_classes).bool()
    else:
        member = F.one_hot(labels.clamp(min=0), task.num_classes).bool()
    member = member & task.labelled(labels).unsqueeze(1)
    rows = {}
    for branch in batches(outputs)[0].weights:
        weight = of_branch(outputs, "weights", branch).float()
        if len(weight) != len(labels):
            raise ValueError(f"labels must be one per sample, {len(weight)}, got {len(labels)}")
        counted = member & (weight > 0).unsqueeze(1)  # 0 where the sample lacks the modality
        rows[branch] = (weight.unsqueeze(1) * counted).sum(dim=0) / counted.sum(dim=0)
    means = torch.stack(list(rows.values())).numpy()
    texts = [["" if np.isnan(mean) else f"{mean:.2f}" for mean in row] for row in means]
    counts = member.sum(dim=0).tolist()
    columns = [f"{name}\nn = {count}" for name, count in zip(task.names, counts, strict=True)]
    axes = axes_or_own(axes, 1.6 + 0.8 * len(columns), 1.1 + 0.45 * len(rows))
    draw_table(axes, means, texts, list(rows), columns)
    axes.set(title="Mean weight in the fusion", xlabel="true class", ylabel="branch")
    return axes


def step_contributions(
    predictor: Predictor,
    sample: Mapping[str, Any],
    modality: str,
    *,
    words: Sequence[str] | None = None,
    axes: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw what every step of a modality, such as a word, adds to the prediction of one sample.

    Each step is left out in turn, and the others move together. A bar is the prediction of the
    whole minus that without the step: of a score, how much higher the step makes it; of classes or
    labels, how much more probable it makes the one that is most probable for the whole. Steps that
    say the same stand in for each other, so that bars need not sum to anything.

    Args:
        predictor: The model with its task.
        sample: As the predictor takes one, such as ``inputs`` of a recording.
        modality: The one whose steps are left out: features of two steps or more.
        words: What stands for each step; None: its number.
        axes: Where to draw; None: in a figure of its own.

    Returns:
        The axes. A bar for each step is dark where it adds, hatched where it takes away.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The modality has no two steps, words are not one per step, or as the predictor.

    Example:
        >>> from tdmer import TDMER
        >>> task = Classification(2, classes=["calm", "angry"])
        >>> predictor = Predictor(TDMER({"text": 3, "audio": 2}, task.num_classes), task)
        >>> clip = {"text": np.eye(3), "audio": np.ones(2)}
        >>> axes = step_contributions(predictor, clip, "text", words=["not", "so", "bad"])
        >>> len(axes.patches), axes.get_xlabel()
        (3, 'step of text')
    """
    from matplotlib.patches import Patch

    given = sample.get(modality)
    features = None if given is None or isinstance(given, str | PathLike) else given
    steps = None if features is None else np.asarray(torch.as_tensor(features))
    if steps is None or steps.ndim != 2 or len(steps) < 2:
        got = repr(given) if steps is None else steps.shape
        raise ValueError(f"sample[{modality!r}] must be two steps or more, (t, f), got {got}")
    if words is not None and len(words) != len(steps):
        raise ValueError(f"words must be one per step, {len(steps)}, got {len(words)}")
    without = [{**sample, modality: np.delete(steps, step, axis=0)} for step in range(len(steps))]
    whole, *others = predictor([sample, *without])
    if isinstance(whole.prediction, float):
        what = "the score"
        values = [found.prediction for found in (whole, *others)]
    else:
        best = max(whole.probabilities, key=lambda name: whole.probabilities[name])
        what = f"the probability of {best}"
        values = [found.probabilities[best] for found in (whole, *others)]
    changes = values[0] - np.array(values[1:])

    axes = axes_or_own(axes, min(12, 2.5 + 0.28 * len(steps)), 3.4)
    adds: dict[str, Any] = {"facecolor": DARK, "edgecolor": DARK}
    takes: dict[str, Any] = {"facecolor": LIGHT, "edgecolor": DARK, "hatch": "///"}
    for step, change in enumerate(changes):
        axes.bar(step, change, 0.7, **(adds if change >= 0 else takes))
    axes.axhline(0, color="black", linewidth=0.8)
    if words is not None:
        axes.set_xticks(range(len(steps)), words, rotation=60, ha="right", parse_math=False)
    axes.set(xlabel=f"step of {modality}", ylabel="change by the step")
    axes.set_title(f"What every step adds to {what} ({values[0]:.2f})", parse_math=False)
    axes.legend(handles=[Patch(**adds, label="raises"), Patch(**takes, label="lowers")])
    return axes
