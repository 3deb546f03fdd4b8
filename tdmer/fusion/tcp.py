"""Task-contribution fusion: branches weighed by their estimated true class probability."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
)
from tdmer.masks import zero_pads


class FusionOutput(NamedTuple):
    """What a fusion returns."""

    fused: Tensor
    """``h``, the weighted sum of the branches, ``(b, d)``."""
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
    weights: Float[Tensor, " b *e"],
    tcp: Float[Tensor, " b *e"],
    *,
    mask: Bool[Tensor, " b *e"] | None = None,
) -> Float[Tensor, "*e"]:
    """Mean squared error of the predicted weights against the true class probability (Eq. 11).

    Args:
        weights: Predicted confidence in [0, 1], ``(b,)``, or ``(b, e)`` of several branches.
        tcp: True class probability. It is held fixed: with a gradient, a low confidence would
            pull the probability of the true class down.
        mask: True where a sample counts; None: everywhere.

    Returns:
        A scalar, or ``(e,)``, with values in [0, 1]; 0 where no sample counts.

    Raises:
        TypeError: An input is not floating point, or ``mask`` is not bool.
        ValueError: The shapes differ.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 11.

    Example:
        >>> confidence_loss(torch.tensor([0.5, 1.0]), torch.tensor([0.75, 1.0]))
        tensor(0.0312)
    """
    check_features("weights", weights)
    check_features("tcp", tcp)
    check_same_shape("tcp", tcp, "weights", weights)
    check_mask("mask", mask, weights.shape)
    difference = weights - tcp.detach()
    if mask is not None:  # Before the square, whose gradient at NaN would be NaN.
        difference = difference.masked_fill(~mask, 0.0)
    return _mean(difference.square(), mask)


def tcp_loss(
    losses: Float[Tensor, " b *e"],
    tcp: Float[Tensor, " b *e"],
    weights: Float[Tensor, " b *e"],
    *,
    mask: Bool[Tensor, " b *e"] | None = None,
) -> Float[Tensor, "*e"]:
    """Loss of a branch of the fusion: its classification and its confidence (Eqs. 10-12).

    ``mean_b losses + mean_b (w - TCP)^2``; Eq. 12 is its sum over the branches.

    Args:
        losses: Supervised loss of every sample by the logits of the branch, such as the
            cross-entropy of Eq. 10, ``(b,)``; or of several branches, ``(b, e)``.
        tcp: True class probability by the same logits; it is held fixed.
        weights: Predicted weight of the branch in [0, 1].
        mask: True where a sample counts: it has a label and the branch; None: everywhere. What
            stands elsewhere does not matter.

    Returns:
        A scalar, or ``(e,)``; 0 where no sample counts.

    Raises:
        TypeError: An input is not floating point, or ``mask`` is not bool.
        ValueError: The shapes differ.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eqs. 10-12.

    Example:
        >>> logits, target = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 1])
        >>> losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        >>> tcp = true_class_probability(logits, target)
        >>> tcp_loss(losses, tcp, torch.tensor([0.5, 1.0]))
        tensor(0.4171)
    """
    check_features("losses", losses)
    check_same_shape("weights", weights, "losses", losses)
    check_mask("mask", mask, losses.shape)
    return _mean(losses, mask) + confidence_loss(weights, tcp, mask=mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.sum(dim=0) / max(len(values), 1)
    return values.masked_fill(~mask, 0.0).sum(dim=0) / mask.sum(dim=0).clamp(min=1)


class Confidence(nn.Module):
    r"""Estimates of the true class probability of branches, from features and the branches' logits.

    ``w = sigmoid(MLP(x) + s logit(sum_k p_k^2))`` with ``p = softmax(logits)`` held fixed. The sum
    is the true class probability that ``p`` itself expects; the MLP, which begins at nearly 0,
    learns where the feature says that ``p`` errs. From the feature alone, as the paper has it, the
    estimate follows the true class probability of unseen samples less well than the greatest
    entry of ``p`` does. Every branch has a net of its own; all are computed at once.

    Args:
        branches: Number ``e`` of branches.
        width: Width ``d`` of every branch.
        dropout: Dropout inside the MLPs, in [0, 1).

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Section II.D, to which the logits are added.

    Example:
        >>> confidence = Confidence(2, width=8)
        >>> confidence(torch.zeros(2, 5, 8), torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5])
    """

    hidden: nn.Parameter
    hidden_bias: nn.Parameter
    dropout: nn.Dropout
    last: nn.Parameter
    bias: nn.Parameter
    scale: nn.Parameter

    def __init__(self, branches: int, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_count("branches", branches)
        check_count("width", width)
        check_real("dropout", dropout, below=1.0)
        # As torch.nn.Linear begins, but for the last layer.
        bound = width**-0.5
        self.hidden = nn.Parameter(torch.empty(branches, width, width).uniform_(-bound, bound))
        self.hidden_bias = nn.Parameter(torch.empty(branches, 1, width).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Parameter(torch.empty(branches, width, 1).normal_(std=1e-3))
        self.bias = nn.Parameter(torch.zeros(branches, 1))
        self.scale = nn.Parameter(torch.ones(branches, 1))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"branches={len(self.hidden)}, width={self.hidden.shape[1]}"

    def forward(
        self, x: Float[Tensor, "e b d"], logits: Float[Tensor, "e b k"]
    ) -> Float[Tensor, "e b"]:
        """Estimate it for every branch and sample; values in [0, 1].

        Raises:
            TypeError: An input is not floating point.
            ValueError: The number of branches or the width is another, or the inputs differ in
                their samples.
        """
        check_features("x", x, ndim=3, width=self.hidden.shape[1])
        check_features("logits", logits, ndim=3)
        if len(x) != len(self.hidden) or logits.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"x and logits must be of {len(self.hidden)} branches and the same samples, "
                f"got shapes {tuple(x.shape)} and {tuple(logits.shape)}"
            )
        precise = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        expected = precise.softmax(dim=-1).square().sum(dim=-1)
        prior = expected.logit(eps=1e-4).to(x.dtype)
        hidden = self.dropout(torch.baddbmm(self.hidden_bias, x, self.hidden).relu())
        score: Tensor = (hidden @ self.last).squeeze(-1) + self.bias + self.scale * prior
        return score.sigmoid()


class TCPFusion(nn.Module):
    """Sum of branches, each weighed by a prediction of its true class probability.

    Every branch has a :class:`Confidence`, ``w``; the fused feature is ``h = sum w * branch``. The
    predicted weights are used in training, too: the true probability would leak the label. The
    weights are not normalised.

    Args:
        branches: Names of the branches.
        width: Width ``d`` of every branch.
        dropout: Dropout inside the confidence nets, in [0, 1).

    Source:
        Xu et al., "TDMER", ICASSP 2025, Section II.D.

    Example:
        >>> fusion = TCPFusion(["common", "text"], width=8)
        >>> branches = {"common": torch.zeros(2, 8), "text": torch.zeros(2, 8)}
        >>> logits = {"common": torch.zeros(2, 3), "text": torch.zeros(2, 3)}
        >>> out = fusion(branches, logits)
        >>> out.fused.shape, out.weights["text"].shape
        (torch.Size([2, 8]), torch.Size([2]))
    """

    branches: tuple[str, ...]
    confidence: Confidence

    def __init__(self, branches: Sequence[str], width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_names("branches", branches)
        self.width = width
        # In the order of the names, in which they are summed: the caller's would show in rounding.
        self.branches = tuple(sorted(branches))
        self.confidence = Confidence(len(self.branches), width, dropout=dropout)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"branches={list(self.branches)}, width={self.width}"

    def forward(
        self,
        branches: Mapping[str, Float[Tensor, "b d"]],
        logits: Mapping[str, Float[Tensor, "b k"]],
        present: Mapping[str, Bool[Tensor, " b"]] | None = None,
    ) -> FusionOutput:
        """Weigh and sum the branches.

        Args:
            branches: One vector per branch and sample.
            logits: What a classifier says of each branch alone.
            present: True where a sample has the branch; None or a missing entry: everywhere. A
                missing branch weighs exactly 0, whatever stands in it.

        Raises:
            TypeError: ``branches`` is not a mapping, or an entry is not floating point.
            ValueError: ``branches`` or ``logits`` are not those of the constructor, or a width or a
                number of samples is another.
        """
        check_branches(branches, self.branches, self.width)
        if set(logits) != set(self.branches):
            raise ValueError(f"logits must be of {list(self.branches)}, got {list(logits)}")
        for name in self.branches:
            samples = branches[name].shape[0]  # Of a symbolic size, len would make a constant.
            if logits[name].shape[0] != samples:
                raise ValueError(
                    f"logits[{name!r}] must be of the {samples} samples of its branch, "
                    f"got {logits[name].shape[0]}"
                )
        x = torch.stack([branches[name] for name in self.branches])
        its_logits = torch.stack([logits[name] for name in self.branches])
        everywhere = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        given = {} if present is None else present
        here = torch.stack([given.get(name, everywhere) for name in self.branches])
        x = zero_pads(x, here)
        weights = self.confidence(x, zero_pads(its_logits, here)).masked_fill(~here, 0.0)
        fused = (weights.unsqueeze(2) * x).sum(dim=0)
        named = dict(zip(self.branches, weights, strict=True))
        return FusionOutput(fused, {name: named[name] for name in branches})


def check_branches(branches: Mapping[str, Tensor], names: Sequence[str], width: int) -> None:
    """Raise unless ``branches`` holds a vector of ``width`` per sample for each of ``names``."""
    if not isinstance(branches, Mapping):
        raise TypeError(f"branches must be a mapping by name, got {type(branches).__name__}")
    if set(branches) != set(names):
        raise ValueError(f"branches must be {list(names)}, got {list(branches)}")
    for name, branch in branches.items():
        check_features(f"branches[{name!r}]", branch, ndim=2, width=width)
