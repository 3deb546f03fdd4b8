"""One objective for all systems: the task, and what a system's output adds of its own."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_real
from tdmer.objective import Task


class Auxiliary(NamedTuple):
    """A loss that a system has beside the task."""

    weight: float
    """Its weight, unless :class:`BaselineLoss` is told another."""
    value: Tensor
    """A scalar, without the weight."""


@runtime_checkable
class BaselineOutput(Protocol):
    """What :class:`BaselineLoss` asks of an output. It is a named tuple with more in it.

    Example:
        >>> import torch
        >>> output: BaselineOutput = Plain(torch.zeros(2, 3), torch.zeros(2, 8))
    """

    @property
    def logits(self) -> Tensor:
        """Prediction before the softmax, ``(b, k)``."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """Return the losses of the system itself by name."""


class Plain(NamedTuple):
    """The output of a system that has no loss of its own."""

    logits: Tensor
    """Prediction before the softmax, ``(b, k)``."""
    fused: Tensor
    """What the last net reads, ``(b, d)``."""

    def losses(self, task: Task, labels: Tensor) -> dict[str, Auxiliary]:
        """There are none."""
        return {}


class BaselineTerms(NamedTuple):
    """Every term of an objective, unweighted, and the total; all scalars."""

    total: Tensor
    """What to minimise."""
    task: Tensor
    """Supervised loss of the prediction."""
    auxiliary: dict[str, Tensor]
    """What the system has beside it, by name."""


class BaselineLoss(nn.Module):
    """Loss of the task, and the losses of the system itself with their weights.

    Args:
        task: As of :class:`tdmer.objective.TDMERLoss`.
        weights: Weights by name, in place of those that the system gives its losses.

    Raises:
        TypeError: A weight is not a number.
        ValueError: A weight is below 0; when called, one is of no loss of the output.

    Example:
        >>> import torch
        >>> from tdmer import Classification
        >>> from tdmer.baselines import LateFusion
        >>> model, labels = LateFusion({"text": 4, "audio": 3}, 2), torch.tensor([0, 1])
        >>> output = model({"text": torch.zeros(2, 5, 4), "audio": torch.zeros(2, 6, 3)})
        >>> terms = BaselineLoss(Classification(2), weights={"branches": 0.5})(output, labels)
        >>> terms.auxiliary.keys()
        dict_keys(['branches'])
        >>> bool(terms.total == terms.task + 0.5 * terms.auxiliary["branches"])
        True
    """

    weights: dict[str, float]

    def __init__(self, task: Task, *, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.task = task
        self.weights = dict(weights or {})
        for name, weight in self.weights.items():
            check_real(f"weights[{name!r}]", weight)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"weights={self.weights}"

    def forward(self, output: BaselineOutput, labels: Tensor) -> BaselineTerms:
        """Compute every term.

        Args:
            output: What a system returned.
            labels: Labels as the task takes them; a sample without one counts in no supervised
                term.
        """
        task = supervised_loss(self.task, output.logits, labels)
        found = output.losses(self.task, labels)
        unknown = [name for name in self.weights if name not in found]
        if unknown:
            raise ValueError(f"weights must be of {list(found)}, got {unknown}")
        total = task
        for name, (weight, value) in found.items():
            total = total + self.weights.get(name, weight) * value
        return BaselineTerms(total, task, {name: value for name, (_, value) in found.items()})


def supervised_loss(
    task: Task,
    logits: Float[Tensor, "b k"],
    labels: Tensor,
    mask: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean loss of the task over the samples that have a label; 0 if there is none.

    Args:
        task: One of :mod:`tdmer.tasks`, or any other :class:`~tdmer.objective.Task`.
        logits: Of every sample.
        labels: As the task takes them.
        mask: True where a sample counts; None: everywhere.

    Example:
        >>> import torch
        >>> from tdmer import Classification
        >>> supervised_loss(Classification(2), torch.zeros(2, 2), torch.tensor([1, -100]))
        tensor(0.6931)
    """
    counts = task.labelled(labels)
    if mask is not None:
        counts = counts & mask
    losses = task(logits, labels).masked_fill(~counts, 0.0)
    return losses.sum() / counts.sum().clamp(min=1)
