"""Central moment discrepancy: how far two samples are apart in their moments (Eqs. 2, 3)."""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_features, check_mask, check_positive, check_weights
from tdmer.losses._moments import divisor, moments_of, recentred, reduced
from tdmer.masks import is_readable, is_traced, unless_full

# Elements of all samples up to which launching operations costs more than they do.
_SMALL = 2**18


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
        weights: Weights of the samples, finite and not negative; one of weight 0 is as good as
            masked. Others are an error on a CPU; elsewhere they enter the sums as they are.
        group: Processes that each hold a part of the sample; the result is that of the whole. All
            must call, forward and backward, and each gets the gradient of the *sum* of their
            losses, which :class:`~torch.nn.parallel.DistributedDataParallel` then averages.

    Returns:
        The moments; zeros without gradient if no sample is real. Float32 for lower precision
        input.

    Raises:
        TypeError: ``x`` or ``weights`` is not floating point, ``mask`` is not bool, or
            ``n_moments`` is not an int.
        ValueError: ``x`` has no feature axis, a shape is not that of the sample axes,
            ``n_moments`` is below 1, or a weight is negative, NaN or infinite.

    Source:
        Zellinger et al., "Central Moment Discrepancy", ICLR 2017, Definition 2.

    Example:
        >>> central_moments(torch.tensor([[0.0], [0.0], [3.0]]), 3).squeeze(1)
        tensor([1., 2., 2.])
    """
    check_count("n_moments", n_moments)
    return _moments([_sample(x, mask, weights)], n_moments, 1.0, group)[0][0]


def merge_moments(
    moments: Float[Tensor, "p k d"], weights: Float[Tensor, " p"]
) -> Float[Tensor, "k d"]:
    r"""Moments of a whole sample from the moments of its parts.

    Exact: with ``s`` the distance of a part's mean from the mean of all,
    ``C_k = sum_parts w sum_j binomial(k, j) C_j s^(k - j) / sum w``, where ``C_0 = 1, C_1 = 0``.
    Serves samples that are never in one place: chunks of a file, or this batch and detached
    moments of earlier ones.

    Args:
        moments: Moments of every part, as :func:`central_moments` returns them.
        weights: Weights of the parts, as there: their numbers of samples.

    Returns:
        The moments of the whole; zeros if all weights are 0.

    Raises:
        TypeError: An input is not floating point.
        ValueError: ``moments`` has not 3 axes, or ``weights`` is not one finite number of at
            least 0 per part.

    Source:
        Pebay, "Formulas for robust, one-pass parallel computation of covariances and
        arbitrary-order statistical moments", Sandia report SAND2008-6212, 2008.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [7.0]])
        >>> parts = torch.stack([central_moments(x[:2], 3), central_moments(x[2:], 3)])
        >>> merge_moments(parts, torch.tensor([2.0, 1.0])).squeeze(1)
        tensor([ 3.0000,  8.6667, 12.0000])
    """
    check_features("moments", moments, ndim=3)
    check_weights("weights", weights, moments.shape[:1])
    _refuse_weights("weights", weights)
    weights = weights.to(torch.promote_types(moments.dtype, torch.float32))
    shares = (weights / divisor(weights.sum())).view(-1, 1, 1)
    mean = (shares * moments[:, :1]).sum(dim=0)
    central = shares * recentred(moments, moments[:, 0] - mean)
    return torch.cat([mean, central.sum(dim=0)])


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
        x_weights: Weights of the samples of ``x`` (see :func:`central_moments`).
        y_weights: Weights of the samples of ``y``.
        group: Processes that each hold a part of both samples (see :func:`central_moments`).

    Returns:
        A scalar, at least 0; 0 if a side has no real sample. Float32 for lower precision input.

    Warns:
        UserWarning: The result is above ``sqrt(d) (K + 3) / 4``, which no features in an interval
            of that length reach. Only a CPU looks.

    Raises:
        TypeError: As :func:`central_moments`.
        ValueError: As :func:`central_moments`, the widths differ, or ``span`` is not above 0.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 2; Zellinger et al., ICLR 2017, Eq. 9.

    Example:
        >>> cmd_loss(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5]]), n_moments=2)
        tensor(0.2500)
    """
    _check_options(n_moments, span)
    a = _sample(x, x_mask, x_weights, ("x", "x_mask", "x_weights"))
    b = _sample(y, y_mask, y_weights, ("y", "y_mask", "y_weights"), x.shape[-1])
    return _total(_distances([a, b], n_moments, span, group), x.shape[-1])


def corrected_cmd_loss(
    x: Float[Tensor, "*n d"],
    y: Float[Tensor, "*m d"],
    *,
    n_moments: int = 5,
    span: float = 1.0,
    x_mask: Bool[Tensor, "*n"] | None = None,
    y_mask: Bool[Tensor, "*m"] | None = None,
) -> Float[Tensor, ""]:
    r"""Central moment discrepancy less what chance alone explains (Eq. 2, shrunk).

    ``sum_k max(0, D_k - v_k / D_k)``, with ``D_k`` the distance of order k in Eq. 2 and ``v_k`` the
    expected square of that distance between two samples of one distribution, from the sampling
    variance of a moment, ``(C_2k - C_k^2 - 2k C_(k-1) C_(k+1) + k^2 C_2 C_(k-1)^2) / (n - 1)``
    (``C_2 / (n - 1)`` for the mean), summed over features and samples. ``D_k^2 - v_k`` estimates
    the squared distance of the distributions without the bias of ``D_k^2``; a distance below
    chance is 0. ``v_k`` is a constant to the gradient: widening a sample must not pay.

    Args:
        x: Samples with values in an interval; all axes but the last are sample axes.
        y: Samples of the same width, any number of them.
        n_moments: The highest order, K; moments up to 2K are computed.
        span: Length of the interval, ``|b - a|``.
        x_mask: True where a sample of ``x`` is real; None: all are.
        y_mask: True where a sample of ``y`` is real; None: all are.

    Returns:
        A scalar from 0 to :func:`cmd_loss`. A sample of one says nothing of chance, and its side
        adds none.

    Raises:
        TypeError: As :func:`cmd_loss`.
        ValueError: As :func:`cmd_loss`.

    Source:
        Eq. 2 with positive-part shrinkage; variance of a sample moment: Kendall and Stuart,
        "The Advanced Theory of Statistics", vol. 1, 10.9.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.2], [0.6]])
        >>> cmd_loss(x, y, n_moments=1), corrected_cmd_loss(x, y, n_moments=1)
        (tensor(0.1000), tensor(0.))
    """
    _check_options(n_moments, span)
    a = _sample(x, x_mask, None, ("x", "x_mask", ""))
    b = _sample(y, y_mask, None, ("y", "y_mask", ""), x.shape[-1])
    distances = _distances([a, b], n_moments, span, None)
    noise = _noise(a, n_moments, span) + _noise(b, n_moments, span)
    return _total((distances - noise / divisor(distances)).clamp_min(0.0), x.shape[-1])


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

    n_moments: int
    span: float
    group: dist.ProcessGroup | None

    def __init__(
        self, *, n_moments: int = 5, span: float = 1.0, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        _check_options(n_moments, span)
        self.n_moments, self.span, self.group = n_moments, span, group

    def extra_repr(self) -> str:
        """Return the options."""
        return f"n_moments={self.n_moments}, span={self.span}, group={self.group}"

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
        rows = {"x_mask": x_mask, "y_mask": y_mask, "x_weights": x_weights, "y_weights": y_weights}
        return cmd_loss(x, y, n_moments=self.n_moments, span=self.span, group=self.group, **rows)


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
        TypeError: As :func:`cmd_loss`.
        ValueError: As :func:`cmd_loss`, there is no sample, or ``masks`` are not of ``samples``.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 3.

    Example:
        >>> ends = {"text": torch.zeros(2, 1), "audio": torch.ones(3, 1), "video": torch.ones(1, 1)}
        >>> pairwise_cmd_loss(ends)
        tensor(2.)
    """
    _check_options(n_moments, span)
    by_key, mask_of = _by_key(samples), {} if masks is None else _by_key(masks)
    if not by_key:
        raise ValueError("samples must hold at least one sample, got none")
    left_out = masks is not None and len(mask_of) < len(by_key)
    if set(mask_of) - set(by_key) or (left_out and not isinstance(masks, Mapping)):
        raise ValueError(f"masks must be of samples {list(by_key)}, got of {list(mask_of)}")
    parts: list[_Sample] = []
    for key, x in by_key.items():
        names = f"samples[{key!r}]", f"masks[{key!r}]", ""
        width = parts[0].x.shape[1] if parts else None
        parts.append(_sample(x, mask_of.get(key), None, names, width))
    return _total(_distances(parts, n_moments, span, group), parts[0].x.shape[1])


def _by_key(values: Mapping[str, Any] | Sequence[Any]) -> dict[str | int, Any]:
    return dict(values.items() if isinstance(values, Mapping) else enumerate(values))


class _Sample(NamedTuple):
    """What moments are taken of."""

    x: Tensor
    """Rows ``(n, d)``."""
    shares: Tensor | None
    """What every row weighs, in sum 1, or all 0; None: all the same."""
    total: Tensor | None
    """What all rows together weigh before that; None: their number, which is not 0."""


def _sample(
    x: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    names: Sequence[str] = ("x", "mask", "weights"),
    width: int | None = None,
) -> _Sample:
    """Check what was given, under its names in messages, and bring it to one form."""
    check_features(names[0], x, width=width)
    check_mask(names[1], mask, x.shape[:-1])
    check_weights(names[2], weights, x.shape[:-1])
    n = math.prod(x.shape[:-1])
    x = x if x.ndim == 2 else x.reshape(n, x.shape[-1])
    mask = unless_full(mask)
    if mask is None and weights is None and n > 0:
        return _Sample(x, None, None)
    precise = torch.promote_types(x.dtype, torch.float32)
    shares = (x.new_ones(n) if weights is None else weights.reshape(n)).to(precise)
    if mask is not None:
        shares = torch.where(mask.reshape(n), shares, 0.0)
    if weights is not None:
        _refuse_weights(names[2], shares)
    total = shares.sum()
    return _Sample(x, shares / divisor(total), total)


def _check_options(n_moments: int, span: float) -> None:
    check_count("n_moments", n_moments)
    check_positive("span", span)


def _refuse_weights(name: str, weights: Tensor) -> None:
    """Raise where it can be seen that the weights are no weights."""
    if is_readable(weights) and not bool((weights >= 0).all() & weights.sum().isfinite()):
        raise ValueError(
            f"{name} must be at least 0 and have a finite sum, "
            f"got values from {weights.min():g} to {weights.max():g}"
        )


def _distances(
    samples: Sequence[_Sample], n_moments: int, span: float, group: dist.ProcessGroup | None
) -> Tensor:
    """Return the distance of every order (last axis) for every pair of samples."""
    parts = _moments(samples, n_moments, span, group)
    # No pair: no feature is left, and the distance is 0 without a special case.
    gaps = [parts[0][0][:, :0]] if len(parts) == 1 else []
    for (a, a_real), (b, b_real) in combinations(parts, 2):
        gap = a - b
        for real in (a_real, b_real):
            gap = gap if real is None else torch.where(real, gap, 0.0)
        gaps.append(gap)
    # vector_norm has the subgradient 0 at 0, where the square root of a sum has none.
    distances: Tensor = torch.linalg.vector_norm(torch.stack(gaps), dim=2)
    return distances


def _moments(
    samples: Sequence[_Sample], n_moments: int, span: float, group: dist.ProcessGroup | None
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the moments of every sample, and whether one of its rows is real (None: one is)."""
    x = samples[0].x
    small = group is None and not is_traced(x) and x.numel() * len(samples) <= _SMALL
    if small and all(s.total is None and s.x.shape == x.shape for s in samples):
        # The features stand side by side, as those of one sample.
        moments = moments_of(torch.cat([s.x for s in samples], dim=1), None, n_moments, span)
        return [(part, None) for part in moments.chunk(len(samples), dim=1)]
    found = []
    for x, shares, total in samples:
        moments = moments_of(x, shares, n_moments, span)
        if group is not None:
            total = moments.new_full((), x.shape[0]) if total is None else total
            moments, total = reduced(moments, total, group)
        found.append((moments, None if total is None else total != 0))
    return found


def _noise(sample: _Sample, n_moments: int, span: float) -> Tensor:
    """Return the sampling variance of the moments of every order, summed over features."""
    moments = moments_of(sample.x.detach(), sample.shares, 2 * n_moments, span)
    central = torch.cat([torch.ones_like(moments[:1]), moments])
    central[1] = 0.0
    k = torch.arange(1, n_moments + 1, device=moments.device)
    factor = k.unsqueeze(1).to(moments.dtype)
    slope = factor * central[k - 1]
    variance = central[2 * k] - central[k].square() - 2 * slope * central[k + 1]
    variance += slope.square() * central[2]
    variance[0] = central[2]
    n = moments.new_full((), sample.x.shape[0]) if sample.total is None else sample.total
    return variance.sum(dim=1) / (n - 1).clamp_min(1.0)


def _total(distances: Tensor, width: int) -> Tensor:
    """Return the sum of the distances; warn where it shows that no interval held the features."""
    total = distances.sum()
    pairs, n_moments = distances.shape
    # In units of the span means are at most 1 apart, and the moments of an order from 2 on 1/4.
    most = pairs * math.sqrt(width) * (n_moments + 3) / 4
    if is_readable(total) and total.item() > 1.001 * most:
        warnings.warn(
            f"features must lie in an interval of the length of span, where the loss is at most "
            f"{most:.3g}, got {total.item():.3g}: bound them, or pass the length as span",
            stacklevel=3,
        )
    return total
