"""Central moment discrepancy: how far two samples are apart in their moments (Eqs. 2, 3)."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_features, check_mask, check_positive, check_weights


def central_moments(
    x: Float[Tensor, "*n d"],
    n_moments: int = 5,
    *,
    mask: Bool[Tensor, "*n"] | None = None,
    weights: Float[Tensor, "*n"] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "k d"]:
    r"""Mean and central moments of every feature.

    Row 0 is ``E(x)``, row ``k - 1`` is ``C_k(x) = E((x - E(x))^k)``, with ``E`` the mean over the
    real samples, or their weighted mean ``sum w x / sum w``.

    Args:
        x: Samples; all axes but the last are sample axes: ``(n, d)`` or ``(b, t, d)``.
        n_moments: The highest order, k.
        mask: True where a sample is real; None: all are. What stands elsewhere does not matter.
        weights: Non-negative weights of the samples; one of weight 0 is as good as masked.
        group: Processes that each hold a part of the sample; the result is that of the whole. All
            must call, forward and backward, and each gets the gradient of the *sum* of their
            losses, which :class:`~torch.nn.parallel.DistributedDataParallel` then averages.

    Returns:
        The moments; zeros without gradient if no sample is real. Float32 for lower precision
        input.

    Raises:
        TypeError: ``x`` or ``weights`` is not floating point, ``mask`` is not bool, or
            ``n_moments`` is not an int.
        ValueError: ``x`` has no feature axis, a shape is not that of the sample axes, or
            ``n_moments`` is below 1.

    Source:
        Zellinger et al., "Central Moment Discrepancy", ICLR 2017, Definition 2.

    Example:
        >>> central_moments(torch.tensor([[0.0], [0.0], [3.0]]), 3).squeeze(1)
        tensor([1., 2., 2.])
    """
    check_features("x", x)
    check_mask("mask", mask, x.shape[:-1])
    check_weights("weights", weights, x.shape[:-1])
    check_count("n_moments", n_moments)
    return _moments(x, n_moments, 1.0, mask, weights, group)[0]


def cmd_loss(
    x: Float[Tensor, "*n d"],
    y: Float[Tensor, "*m d"],
    *,
    n_moments: int = 5,
    span: float = 1.0,
    x_mask: Bool[Tensor, "*n"] | None = None,
    y_mask: Bool[Tensor, "*m"] | None = None,
    x_weights: Float[Tensor, "*n"] | None = None,
    y_weights: Float[Tensor, "*m"] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Central moment discrepancy of two samples (Eq. 2).

    ``||E(x) - E(y)|| / span + sum_{k=2..K} ||C_k(x) - C_k(y)|| / span^k``, with the L2 norm over
    features. Two samples of one distribution do not score 0 but a floor of the order of
    ``sqrt(d / n)``: compare as many samples as there are.

    Args:
        x: Samples with values in an interval; all axes but the last are sample axes.
        y: Samples of the same width, any number of them.
        n_moments: The highest order, K.
        span: Length of the interval, ``|b - a|``: 1 for sigmoid features, 2 for tanh.
        x_mask: True where a sample of ``x`` is real; None: all are.
        y_mask: True where a sample of ``y`` is real; None: all are.
        x_weights: Non-negative weights of the samples of ``x``.
        y_weights: Non-negative weights of the samples of ``y``.
        group: Processes that each hold a part of both samples (see :func:`central_moments`).

    Returns:
        A scalar, at least 0; 0 if a side has no real sample. Float32 for lower precision input.

    Raises:
        TypeError: As :func:`central_moments`.
        ValueError: As :func:`central_moments`, the widths differ, or ``span`` is not above 0.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 2; Zellinger et al., ICLR 2017, Eq. 9.

    Example:
        >>> cmd_loss(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5]]), n_moments=2)
        tensor(0.2500)
    """
    check_features("x", x)
    check_features("y", y, width=x.shape[-1])
    check_mask("x_mask", x_mask, x.shape[:-1])
    check_mask("y_mask", y_mask, y.shape[:-1])
    check_weights("x_weights", x_weights, x.shape[:-1])
    check_weights("y_weights", y_weights, y.shape[:-1])
    check_count("n_moments", n_moments)
    check_positive("span", span)
    parts = [
        _moments(x, n_moments, span, x_mask, x_weights, group),
        _moments(y, n_moments, span, y_mask, y_weights, group),
    ]
    return _discrepancy(parts)


class CMDLoss(nn.Module):
    """:func:`cmd_loss` with its options held.

    Args:
        n_moments: The highest order.
        span: Length of the interval of the features.
        group: Processes that each hold a part of both samples.

    Example:
        >>> CMDLoss(n_moments=1, span=2.0)(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
        tensor(1.)
    """

    def __init__(
        self,
        *,
        n_moments: int = 5,
        span: float = 1.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_count("n_moments", n_moments)
        check_positive("span", span)
        self.n_moments = n_moments
        self.span = span
        self.group = group

    def forward(
        self,
        x: Float[Tensor, "*n d"],
        y: Float[Tensor, "*m d"],
        *,
        x_mask: Bool[Tensor, "*n"] | None = None,
        y_mask: Bool[Tensor, "*m"] | None = None,
        x_weights: Float[Tensor, "*n"] | None = None,
        y_weights: Float[Tensor, "*m"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return :func:`cmd_loss` of ``x`` and ``y``."""
        return cmd_loss(
            x,
            y,
            n_moments=self.n_moments,
            span=self.span,
            x_mask=x_mask,
            y_mask=y_mask,
            x_weights=x_weights,
            y_weights=y_weights,
            group=self.group,
        )


def pairwise_cmd_loss(
    samples: Mapping[str, Tensor] | Sequence[Tensor],
    *,
    n_moments: int = 5,
    span: float = 1.0,
    masks: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Sum of the central moment discrepancies of all unordered pairs (Eq. 3).

    Each sample's moments are computed once.

    Args:
        samples: Samples ``(*n, d)`` of one width by name or in a sequence, each with any number
            of samples.
        n_moments: The highest order.
        span: Length of the interval of the features.
        masks: Masks ``(*n)``, True where a sample is real: by the names of ``samples``, where a
            name left out is real throughout, or in a sequence as long as ``samples``.
        group: Processes that each hold a part of every sample (see :func:`central_moments`).

    Returns:
        A scalar, at least 0. A pair of which a side has no real sample adds 0.

    Raises:
        TypeError: As :func:`cmd_loss`, or ``masks`` is of another kind than ``samples``.
        ValueError: As :func:`cmd_loss`, there is no sample, or ``masks`` does not fit ``samples``.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 3.

    Example:
        >>> ends = {"text": torch.zeros(2, 1), "audio": torch.ones(3, 1), "video": torch.ones(1, 1)}
        >>> pairwise_cmd_loss(ends)
        tensor(2.)
    """
    check_count("n_moments", n_moments)
    check_positive("span", span)
    parts = _aligned(samples, masks)
    if not parts:
        raise ValueError("samples must hold at least one sample, got none")
    for key, x, mask in parts:
        check_features(f"samples[{key!r}]", x)
        check_features(f"samples[{key!r}]", x, width=parts[0][1].shape[-1])
        check_mask(f"masks[{key!r}]", mask, x.shape[:-1])
    return _discrepancy([_moments(x, n_moments, span, mask, None, group) for _, x, mask in parts])


def _aligned(
    samples: Mapping[str, Tensor] | Sequence[Tensor],
    masks: Mapping[str, Tensor] | Sequence[Tensor | None] | None,
) -> list[tuple[str | int, Tensor, Tensor | None]]:
    """Pair every sample with its mask; the key serves the messages."""
    if isinstance(samples, Mapping):
        if masks is None:
            masks = {}
        if not isinstance(masks, Mapping):
            raise TypeError(
                f"masks must be a mapping where samples is one, got {type(masks).__name__}"
            )
        if unknown := set(masks) - set(samples):
            raise ValueError(f"masks must have names of samples, got {sorted(unknown)}")
        return [(name, x, masks.get(name)) for name, x in samples.items()]
    if masks is None:
        masks = [None] * len(samples)
    if isinstance(masks, Mapping):
        raise TypeError(
            f"masks must be a sequence where samples is one, got {type(masks).__name__}"
        )
    if len(masks) != len(samples):
        raise ValueError(f"masks must have one entry per sample, {len(samples)}, got {len(masks)}")
    return [(i, x, mask) for i, (x, mask) in enumerate(zip(samples, masks, strict=True))]


def _moments(
    x: Tensor,
    n_moments: int,
    span: float,
    mask: Tensor | None,
    weights: Tensor | None,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Return the moments in units of the span, and the total weight of the real samples."""
    precise = torch.promote_types(x.dtype, torch.float32)
    x = x.reshape(-1 if x.shape[-1] else x.shape[:-1].numel(), x.shape[-1]).to(precise)
    if weights is None:
        weights = torch.ones(x.shape[:-1], dtype=precise, device=x.device)
    weights = weights.reshape(-1, 1).to(precise)
    if mask is not None:
        weights = weights.masked_fill(~mask.reshape(-1, 1), 0.0)
    real = weights > 0
    total = weights.sum()
    weights = weights / torch.where(total > 0, total, 1.0)
    x = torch.where(real, x, 0.0)
    mean = (weights * x).sum(dim=0)
    # Dividing before the power keeps every power of a large span finite.
    centred = torch.where(real, (x - mean) / span, 0.0)
    # The mean is rounded; where it is large, what is left of it is not small beside the spread.
    centred = torch.where(real, centred - (weights * centred).sum(dim=0), 0.0)
    rows = [mean / span]
    power = centred
    for _ in range(1, n_moments):
        power = power * centred
        rows.append((weights * power).sum(dim=0))
    moments = torch.stack(rows)
    if group is not None:
        moments, total = _reduce(moments, total, group)
    return moments, total


def _reduce(moments: Tensor, total: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return the moments of the whole sample from those of every process's part."""
    sums: Tensor = _AllReduce.apply(torch.cat([total[None], total * moments[0]]), group)
    whole = sums[0]
    share = total / torch.where(whole > 0, whole, 1.0)
    mean = sums[1:] / torch.where(whole > 0, whole, 1.0)
    shift = moments[0] - mean
    # C_k about another centre, by the binomial theorem.
    about = [torch.ones_like(shift), torch.zeros_like(shift), *moments[1:]]
    rows = []
    for k in range(2, len(about)):
        row = about[k]
        for j in range(k):
            row = row + comb(k, j) * about[j] * shift ** (k - j)
        rows.append(share * row)
    if rows:
        rows = [_AllReduce.apply(torch.stack(rows), group)]
    return torch.cat([mean[None], *rows]), whole


class _AllReduce(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum over processes of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grad, ctx.group), None


def _discrepancy(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum over pairs and orders of the distances of moments."""
    distances = []
    for (a, a_total), (b, b_total) in combinations(parts, 2):
        # vector_norm has the subgradient 0 at 0, where a square root has none.
        gap = torch.where((a_total > 0) & (b_total > 0), a - b, 0.0)
        distances.append(torch.linalg.vector_norm(gap, dim=1).sum())
    return torch.stack(distances).sum() if distances else parts[0][0].sum() * 0.0
