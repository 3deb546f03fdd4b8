"""Task-contribution fusion: branches weighed by their estimated true class probability."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from tdmer._checks import (
    check_count,
    check_features,
    check_mask,
    check_names,
    check_real,
    check_same_shape,
    check_weights,
)
from tdmer.masks import zero_pads


@runtime_checkable
class LabelledTask(Protocol):
    """What :func:`tcp_loss` asks of a task, once for all branches; see :mod:`tdmer.tasks`.

    The samples of one branch follow those of another: what is said of a sample must not depend on
    the rest of the batch.
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Supervised loss of every sample, shape ``(b,)``."""

    def labelled(self, labels: Tensor) -> Tensor:
        """Whether a sample has a label, shape ``(b,)``."""

    def true_class_probability(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Probability that the logits give to the truth, shape ``(b,)``."""


class FusionOutput(NamedTuple):
    """What a fusion returns."""

    fused: Tensor
    """``h``, the weighted sum of the branches, ``(b, d)``."""
    logits: dict[str, Tensor]
    """Logits of each branch alone, ``(b, k)``."""
    weights: dict[str, Tensor]
    """``w``, the weight of each branch, ``(b,)``; 0 where the branch is missing."""


def true_class_probability(
    logits: Float[Tensor, "b k"], target: Int64[Tensor, " b"] | Float[Tensor, "b k"]
) -> Float[Tensor, " b"]:
    """Probability that a classifier gives to the true class (TCP).

    Args:
        logits: Scores before the softmax.
        target: Index of the true class, or a distribution over classes (rows summing to 1), for
            which the expected probability is returned.

    Returns:
        Values in [0, 1], in float32 at least.

    Raises:
        TypeError: ``logits`` is not floating point.
        ValueError: The shapes do not fit.

    Source:
        Corbière et al., "Addressing failure prediction by learning model confidence", NeurIPS
        2019; TDMER, Section II.D.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> true_class_probability(logits, torch.tensor([1, 0]))
        tensor([0.5000, 0.8808])
        >>> true_class_probability(logits, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.5000, 0.5000])
    """
    check_features("logits", logits, ndim=2)
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    if target.is_floating_point():
        check_same_shape("target", target, "logits", logits)
        return (probabilities * target).sum(dim=-1)
    if target.shape != logits.shape[:1]:
        raise ValueError(f"target must have shape {(len(logits),)}, got {tuple(target.shape)}")
    return probabilities.gather(1, target.unsqueeze(1)).squeeze(1)


def confidence_loss(
    weights: Float[Tensor, " b"],
    tcp: Float[Tensor, " b"],
    *,
    mask: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted weights against the true class probability (Eq. 11).

    Args:
        weights: Predicted confidence in [0, 1].
        tcp: True class probability. It is held fixed: with a gradient, a low confidence would
            pull the probability of the true class down.
        mask: True where a sample counts; None: everywhere.

    Returns:
        A scalar in [0, 1]; 0 if no sample counts.

    Raises:
        TypeError: An input is not floating point, or ``mask`` is not bool.
        ValueError: The shapes differ.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 11.

    Example:
        >>> confidence_loss(torch.tensor([0.5, 1.0]), torch.tensor([0.75, 1.0]))
        tensor(0.0312)
    """
    check_features("weights", weights, ndim=1)
    check_same_shape("tcp", tcp, "weights", weights)
    check_mask("mask", mask, weights.shape)
    return _mean_where(_squared_error(weights, tcp, mask), mask)


def tcp_loss(
    task: LabelledTask,
    logits: Mapping[str, Float[Tensor, "b k"]],
    weights: Mapping[str, Float[Tensor, " b"]],
    labels: Tensor,
    *,
    present: Mapping[str, Bool[Tensor, " b"]] | None = None,
) -> Float[Tensor, ""]:
    """Loss of the fusion: classification and confidence of every branch (Eqs. 10-12).

    ``sum_branches mean_b task(logits, labels) + mean_b (w - TCP)^2``.

    Args:
        task: Says what loss and true class probability are; see :mod:`tdmer.tasks`.
        logits: Logits of each branch.
        weights: Predicted weight of each branch.
        labels: Labels as the task takes them; samples without a label do not count.
        present: True where a sample has the branch; None or a missing entry: everywhere.

    Returns:
        A scalar of at least 0.

    Raises:
        TypeError: ``logits`` or ``weights`` are not floating point, or ``present`` is not bool.
        ValueError: ``logits`` and ``weights`` do not name the same branches, or shapes do not fit.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eqs. 10-12.

    Example:
        >>> from tdmer.tasks import Classification
        >>> logits = {"common": torch.tensor([[0.0, 0.0]])}
        >>> tcp_loss(Classification(), logits, {"common": torch.tensor([0.5])}, torch.tensor([1]))
        tensor(0.6931)
    """
    if set(logits) != set(weights) or not logits:
        raise ValueError(
            f"weights must name the branches of logits, {list(logits)}, got {list(weights)}"
        )
    masks = [None if present is None else present.get(name) for name in logits]
    first = next(iter(logits))
    for (name, scores), here in zip(logits.items(), masks, strict=True):
        check_features(f"logits[{name!r}]", scores, ndim=2)
        check_same_shape(f"logits[{name!r}]", scores, f"logits[{first!r}]", logits[first])
        check_weights(f"weights[{name!r}]", weights[name], scores.shape[:1])
        check_mask(f"present[{name!r}]", here, scores.shape[:1])
    if labels.shape[:1] != logits[first].shape[:1]:
        raise ValueError(
            f"labels must be of {len(logits[first])} samples, got shape {tuple(labels.shape)}"
        )
    # All branches at once: what the task makes of the labels is made only once.
    labelled = task.labelled(labels)
    counts = torch.stack([labelled if here is None else labelled & here for here in masks])
    scores = zero_pads(torch.stack(list(logits.values())), counts).flatten(0, 1)
    repeated = labels.repeat(len(logits), *[1] * (labels.ndim - 1))
    losses = task(scores, repeated).view_as(counts)
    tcp = task.true_class_probability(scores.detach(), repeated).view_as(counts)
    confidence = torch.stack([weights[name] for name in logits]).to(tcp)
    return _mean_where(losses + _squared_error(confidence, tcp, counts), counts).sum()


def _squared_error(weights: Tensor, tcp: Tensor, mask: Tensor | None) -> Tensor:
    difference = weights - tcp.detach()
    return (difference if mask is None else difference.masked_fill(~mask, 0.0)).square()


def _mean_where(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean along the last axis where the mask is True; 0 where it is nowhere."""
    if mask is None:
        return values.sum(dim=-1) / max(values.shape[-1], 1)
    return values.masked_fill(~mask, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


class TCPLoss(nn.Module):
    """:func:`tcp_loss` with its task held.

    Args:
        task: An object of :mod:`tdmer.tasks`.

    Example:
        >>> from tdmer.tasks import Classification
        >>> logits = {"common": torch.tensor([[0.0, 0.0]])}
        >>> TCPLoss(Classification())(logits, {"common": torch.tensor([1.0])}, torch.tensor([1]))
        tensor(0.9431)
    """

    def __init__(self, task: LabelledTask) -> None:
        super().__init__()
        self.task = task

    def forward(
        self,
        logits: Mapping[str, Float[Tensor, "b k"]],
        weights: Mapping[str, Float[Tensor, " b"]],
        labels: Tensor,
        *,
        present: Mapping[str, Bool[Tensor, " b"]] | None = None,
    ) -> Float[Tensor, ""]:
        """Return :func:`tcp_loss` of the branches."""
        return tcp_loss(self.task, logits, weights, labels, present=present)


class TCPFusion(nn.Module):
    """Sum of branches, each weighed by a prediction of its true class probability.

    Every branch has a classifier and a confidence net ``w = sigmoid(MLP(branch))``; the fused
    feature is ``h = sum w * branch``. The predicted weights are used in training, too: the true
    probability would leak the label. The weights are not normalised.

    Args:
        branches: Names of the branches.
        width: Width ``d`` of every branch.
        num_classes: Width ``k`` of the logits.
        dropout: Dropout inside the confidence nets, in [0, 1).

    Source:
        Xu et al., "TDMER", ICASSP 2025, Section II.D.

    Example:
        >>> fusion = TCPFusion(["common", "text"], width=8, num_classes=3)
        >>> out = fusion({"common": torch.zeros(2, 8), "text": torch.zeros(2, 8)})
        >>> out.fused.shape, out.logits["text"].shape, out.weights["text"].shape
        (torch.Size([2, 8]), torch.Size([2, 3]), torch.Size([2]))
    """

    def __init__(
        self, branches: Sequence[str], width: int, num_classes: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_names("branches", branches)
        check_count("width", width)
        check_count("num_classes", num_classes)
        check_real("dropout", dropout, below=1.0)
        self.heads = nn.ModuleDict({name: nn.Linear(width, num_classes) for name in branches})
        self.confidences = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(width, width),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                    nn.Linear(width, 1),
                    nn.Sigmoid(),
                )
                for name in branches
            }
        )

    def forward(
        self,
        branches: Mapping[str, Float[Tensor, "b d"]],
        present: Mapping[str, Bool[Tensor, " b"]] | None = None,
    ) -> FusionOutput:
        """Weigh and sum the branches.

        Args:
            branches: One vector per branch and sample.
            present: True where a sample has the branch; None or a missing entry: everywhere. A
                missing branch weighs exactly 0, whatever stands in it.

        Raises:
            ValueError: ``branches`` are not those of the constructor.
        """
        if set(branches) != set(self.heads):
            raise ValueError(f"branches must be {list(self.heads)}, got {list(branches)}")
        logits, weights, parts = {}, {}, []
        for name in self.heads:
            here = None if present is None else present.get(name)
            branch = zero_pads(branches[name], here)
            logits[name] = self.heads[name](branch)
            weight = self.confidences[name](branch).squeeze(-1)
            weights[name] = weight if here is None else weight.masked_fill(~here, 0.0)
            parts.append(weights[name].unsqueeze(-1) * branch)
        return FusionOutput(torch.stack(parts).sum(dim=0), logits, weights)


class MeanFusion(nn.Module):
    """Plain mean of the present branches: what remains of :class:`TCPFusion` in an ablation.

    Args:
        branches: Names of the branches.
        width: Width ``d`` of every branch.
        num_classes: Width ``k`` of the logits.

    Example:
        >>> fusion = MeanFusion(["common", "text"], width=1, num_classes=3)
        >>> fusion({"common": torch.zeros(1, 1), "text": torch.ones(1, 1)}).fused
        tensor([[0.5000]])
    """

    def __init__(self, branches: Sequence[str], width: int, num_classes: int) -> None:
        super().__init__()
        check_names("branches", branches)
        self.heads = nn.ModuleDict({name: nn.Linear(width, num_classes) for name in branches})

    def forward(
        self,
        branches: Mapping[str, Float[Tensor, "b d"]],
        present: Mapping[str, Bool[Tensor, " b"]] | None = None,
    ) -> FusionOutput:
        """Average the branches that a sample has; arguments as for :class:`TCPFusion`."""
        if set(branches) != set(self.heads):
            raise ValueError(f"branches must be {list(self.heads)}, got {list(branches)}")
        x = torch.stack([branches[name] for name in self.heads])
        here = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if present is not None:
            here = torch.stack([present.get(n, here[0]) for n in self.heads])
        x = zero_pads(x, here)
        weights = here / here.sum(dim=0).clamp(min=1)
        logits = {name: self.heads[name](part) for name, part in zip(self.heads, x, strict=True)}
        return FusionOutput(
            (weights.unsqueeze(-1) * x).sum(dim=0),
            logits,
            dict(zip(self.heads, weights, strict=True)),
        )
