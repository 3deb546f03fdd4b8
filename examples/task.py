"""What the labels of a file stand for: scores, or classes; and how a prediction is measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from splits import SPLITS, Samples
from torch import Tensor

from tdmer import Classification, MultiLabel, Sentiment, sentiment_metrics
from tdmer.metrics import classification_metrics
from tdmer.tasks import from_config

Task = Classification | Sentiment | MultiLabel  # what tdmer.tasks.from_config makes


def describe_task(
    splits: Mapping[str, Samples], *, values: list[float], l1_weight: float, label_smoothing: float
) -> dict[str, Any]:
    """Return the config of the task: floating-point labels are scores, whole numbers classes."""
    labels = torch.cat([data.labels for data in splits.values()])
    names = next(iter(splits.values())).classes
    kind: dict[str, Any]
    if labels.is_floating_point():
        kind = {"name": "Sentiment", "values": values, "l1_weight": l1_weight}
    elif names is None:
        kind = {"name": "Classification", "num_classes": max(2, int(labels.max()) + 1)}
    else:
        kind = {"name": "Classification", "num_classes": len(names), "classes": names}
    return kind | {"label_smoothing": label_smoothing}


def main_figure(task: Task) -> str:
    """Return the name of the metric that results are compared by."""
    return "mae" if isinstance(task, Sentiment) else "accuracy"


def standing(task: Task, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """Return what is greatest in the epoch to keep.

    Of classes it is the accuracy, and among equals the lesser cross-entropy, which alone rises with
    the confidence of a network while its accuracy still does.
    """
    if isinstance(task, Sentiment):
        return (-metrics["mae"],)
    return metrics["accuracy"], -metrics["loss"]


def metrics(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the field's metrics of a prediction, and ``loss``.

    That is the mean loss of the task without label smoothing, of classes the cross-entropy, which
    systems that are trained otherwise can be compared by.
    """
    measured = sentiment_metrics if isinstance(task, Sentiment) else classification_metrics
    unsmoothed = {name: 0.0 for name in task.config if name == "label_smoothing"}
    plain = from_config(task.config | unsmoothed)
    losses = plain(logits, labels)[plain.labelled(labels)]
    return {"loss": losses.mean().item(), **measured(task.predict(logits), labels)}


def check_labels(path: Path | None, splits: Mapping[str, Samples], task: Task) -> None:
    """Raise unless the labels are such as the task takes, one per sample.

    Raises:
        TypeError: Labels are of another kind.
        ValueError: Labels are of another shape, or no class of the task.
    """
    for split, data in splits.items():
        try:
            task(torch.zeros(len(data), task.num_classes), data.labels)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}, {split}: {error}") from None


def check_training(splits: Mapping[str, Samples], task: Task) -> None:
    """Raise unless there is something to learn from, to choose by and to test on.

    Raises:
        ValueError: A split is missing, or there is no label to train with or to choose by.
    """
    if not set(SPLITS) <= splits.keys():
        raise ValueError(f"--data must have the splits {list(SPLITS)}, got {list(splits)}")
    for split in ("train", "valid"):
        if not task.labelled(splits[split].labels).any():
            raise ValueError(f"the split {split!r} must have a label, got none")
