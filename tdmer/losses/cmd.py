"""Central moment discrepancy: how far two samples are apart in their moments (Eqs. 2, 3)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from math import comb, prod
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_features, check_mask, check_positive, check_weights

# Elements of a block: two float32 blocks are 2 MB, near the cores, and their operations are long
# beside the launching of them; on other devices larger ones hide the launches.
_BLOCK = 2**18


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
        weights: Non-negative weights of the parts: their numbers of samples.

    Returns:
        The moments of the whole; zeros if all weights are 0.

    Raises:
        TypeError: An input is not floating point.
        ValueError: ``moments`` has not 3 axes, or ``weights`` is not one number per part.

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
    shares = (weights / _divisor(weights.sum())).view(-1, 1, 1)
    mean = (shares * moments[:, :1]).sum(dim=0)
    central = shares * _recentred(moments, moments[:, 0] - mean)
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
    samples = [(x, x_mask, x_weights), (y, y_mask, y_weights)]
    return _distances(_all_moments(samples, n_moments, span, group)).sum()


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
    check_features("x", x)
    check_features("y", y, width=x.shape[-1])
    check_mask("x_mask", x_mask, x.shape[:-1])
    check_mask("y_mask", y_mask, y.shape[:-1])
    check_count("n_moments", n_moments)
    check_positive("span", span)
    parts = _all_moments([(x, x_mask, None), (y, y_mask, None)], n_moments, span, None)
    distances = _distances(parts)[0]
    noise = _noise(x, n_moments, span, x_mask) + _noise(y, n_moments, span, y_mask)
    return (distances - noise / _divisor(distances)).clamp_min(0.0).sum()


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
    width = None
    for key, x, mask in parts:
        check_features(f"samples[{key!r}]", x, width=width)
        check_mask(f"masks[{key!r}]", mask, x.shape[:-1])
        width = x.shape[-1]
    triples = [(x, mask, None) for _, x, mask in parts]
    return _distances(_all_moments(triples, n_moments, span, group)).sum()


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


def _distances(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Return the distance of every order (last axis) for every pair of (moments, is any real)."""
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


def _all_moments(
    samples: Sequence[tuple[Tensor, Tensor | None, Tensor | None]],
    n_moments: int,
    span: float,
    group: dist.ProcessGroup | None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Return :func:`_moments` of every (sample, mask, weights)."""
    x = samples[0][0]
    small = group is None and not _is_traced(x) and 0 < x.numel() * len(samples) <= _BLOCK
    if small and all(
        y.shape == x.shape and y.dtype == x.dtype and mask is None and weights is None
        for y, mask, weights in samples
    ):
        # Launching operations costs more than they do: the features stand side by side as those
        # of one sample.
        side_by_side = torch.cat([y for y, *_ in samples], dim=-1)
        moments, _ = _moments(side_by_side, n_moments, span, None, None, None)
        return [(part, None) for part in moments.chunk(len(samples), dim=1)]
    return [_moments(y, n_moments, span, mask, weights, group) for y, mask, weights in samples]


def _moments(
    x: Tensor,
    n_moments: int,
    span: float,
    mask: Tensor | None,
    weights: Tensor | None,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the moments in units of the span, and whether a sample is real (None: one is)."""
    n, d = prod(x.shape[:-1]), x.shape[-1]
    x = x.reshape(n, d)
    precise = torch.promote_types(x.dtype, torch.float32)
    shares = total = None
    if mask is not None or weights is not None:
        weights = x.new_ones(n, dtype=precise) if weights is None else weights.reshape(n)
        weights = weights if mask is None else torch.where(mask.reshape(n), weights, 0.0)
        total = weights.to(precise).sum()
        shares = weights.to(precise) / _divisor(total)
    elif group is not None or n == 0:
        total = x.new_full((), n, dtype=precise)
    if _is_traced(x) or (shares is not None and shares.requires_grad):
        moments = _plain_moments(x, shares, n_moments, span)
    else:
        moments = _blockwise_moments(x, shares, n_moments, span)
    if group is not None and total is not None:
        moments, total = _reduce(moments, total, group)
    return moments, None if total is None else total > 0


def _noise(x: Tensor, n_moments: int, span: float, mask: Tensor | None) -> Tensor:
    """Return the sampling variance of the moments of every order, summed over features."""
    moments, _ = _moments(x.detach(), 2 * n_moments, span, mask, None, None)
    central = torch.cat([torch.ones_like(moments[:1]), moments])
    central[1] = 0.0
    k = torch.arange(1, n_moments + 1, device=x.device)
    factor = k.unsqueeze(1).to(moments.dtype)
    slope = factor * central[k - 1]
    variance = central[2 * k] - central[k].square() - 2 * slope * central[k + 1]
    variance += slope.square() * central[2]
    variance[0] = central[2]
    freedom = max(prod(x.shape[:-1]) - 1, 1) if mask is None else (mask.sum() - 1).clamp(min=1)
    return variance.sum(dim=1) / freedom


def _divisor(total: Tensor) -> Tensor:
    """Return what to divide by: the total, or 1 where it is 0."""
    return torch.where(total > 0, total, 1.0)


def _is_traced(x: Tensor) -> bool:
    """Whether a compiler, an exporter, a functional transform or a subclass sees the operations."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or type(x) not in (Tensor, nn.Parameter)
    )


def _plain_moments(x: Tensor, shares: Tensor | None, n_moments: int, span: float) -> Tensor:
    """Return the moments by differentiable operations."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if shares is None:
        n = x.shape[0]
        shares = x.new_full((n,), 1.0 / max(n, 1))
    shares = shares.unsqueeze(1)
    x = torch.where(shares > 0, x, 0.0)
    mean = (shares * x).sum(dim=0)
    # Dividing before the power keeps every power of a large span finite.
    centred = torch.where(shares > 0, (x - mean) / span, 0.0)
    rows = [mean / span]
    power = centred
    for _ in range(1, n_moments):
        power = power * centred
        rows.append((shares * power).sum(dim=0))
    return torch.stack(rows)


class _BlockwiseMoments(torch.autograd.Function):
    """The moments from blocks of rows that stay in the cache.

    No power of the input is kept. With ``c`` a centred row in units of the span, the gradient with
    respect to the row is ``share / span * (g_1 + sum_{k=2..K} k g_k (c^(k-1) - C_(k-1)))``, where
    ``C_1 = 0``: a polynomial in ``c``, evaluated by Horner's rule.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor | None, n_moments: int, span: float) -> Tensor:
        n, d = x.shape
        c_buffer, power_buffer = buffers = _buffers(x)
        moments = buffers.new_zeros(n_moments, d)
        if shares is None:
            mean = x.sum(dim=0, dtype=buffers.dtype).div_(max(n, 1))
            weights = buffers.new_full((n,), 1.0 / max(n, 1))
        else:
            mean, weights = buffers.new_zeros(d), shares
            for block, share in _blocks(c_buffer, x, shares):
                real = c_buffer[: len(block)].copy_(block)
                mean.addmv_(real.masked_fill_(_pads(share), 0.0).t(), share)
        first, *higher = moments.unbind()
        torch.div(mean, span, out=first)
        for block, share in _blocks(c_buffer, x, weights):
            c = _centre(block, mean, span, None if shares is None else share, c_buffer)
            power, target = c, power_buffer[: len(block)]
            columns = target.t()
            for row in higher:
                power = torch.mul(power, c, out=target)
                row.addmv_(columns, share)
        ctx.save_for_backward(x, shares, mean, moments)
        ctx.span = span
        return moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, shares, mean, moments = ctx.saved_tensors
        span = ctx.span
        if torch.is_grad_enabled():  # This gradient will itself be differentiated.
            plain = _plain_moments(x, shares, len(moments), span)
            (result,) = torch.autograd.grad(plain, x, grad, create_graph=True)
            return result, None, None, None
        orders = torch.arange(1, len(moments) + 1, dtype=grad.dtype, device=grad.device)
        orders /= span * (max(len(x), 1) if shares is None else 1)
        slopes = grad * orders.unsqueeze(1)
        slopes[0].sub_((slopes[2:] * moments[1:-1]).sum(dim=0))
        *lower, top = slopes.unbind()
        lower.reverse()
        c_buffer, value_buffer = _buffers(x)
        result = torch.empty_like(x)
        for block, share, out in _blocks(c_buffer, x, x if shares is None else shares, result):
            c = _centre(block, mean, span, None if shares is None else share, c_buffer)
            target = out if out.dtype == c.dtype else value_buffer[: len(block)]
            value = top
            for slope in lower:
                value = torch.addcmul(slope, value, c, out=target)
            if shares is not None:
                value = torch.mul(value, share.unsqueeze(1), out=target)
            if value is not out:
                out.copy_(value)
        return result, None, None, None


_blockwise_moments: Callable[..., Tensor] = _BlockwiseMoments.apply


def _buffers(x: Tensor) -> Tensor:
    """Return two buffers for blocks of rows of ``x`` in the precision of the statistics."""
    size = _BLOCK if x.device.type == "cpu" else 128 * _BLOCK
    rows = max(1, min(len(x), size // max(x.shape[1], 1)))
    precise = torch.promote_types(x.dtype, torch.float32)
    return torch.empty(2, rows, x.shape[1], dtype=precise, device=x.device)


def _blocks(buffer: Tensor, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield the tensors in blocks of as many rows as the buffer has."""
    rows = len(buffer)
    if len(tensors[0]) <= rows:
        yield list(tensors)
        return
    for start in range(0, len(tensors[0]), rows):
        yield [tensor[start : start + rows] for tensor in tensors]


def _pads(share: Tensor) -> Tensor:
    return (share == 0).unsqueeze(1)


def _centre(
    block: Tensor, mean: Tensor, span: float, share: Tensor | None, buffer: Tensor
) -> Tensor:
    """Write a block less its mean, in units of the span and 0 in pads, to the buffer."""
    c = torch.sub(block, mean, out=buffer[: len(block)])
    if span != 1.0:
        c /= span
    return c if share is None else c.masked_fill_(_pads(share), 0.0)


def _recentred(moments: Tensor, shift: Tensor) -> Tensor:
    """Return the orders from 2 about a centre that lies ``shift`` below the mean."""
    _, *central = moments.unbind(dim=-2)
    about = [torch.ones_like(shift), torch.zeros_like(shift), *central]
    rows = [
        sum((comb(k, j) * about[j] * shift ** (k - j) for j in range(k)), start=about[k])
        for k in range(2, len(about))
    ]
    return torch.stack(rows, dim=-2) if rows else moments[..., 1:, :]


def _reduce(moments: Tensor, total: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return moments and weight of the whole sample from those of every process's part."""
    sums = _all_reduce(torch.cat([total.view(1), total * moments[0]]), group)
    whole = sums[0]
    mean = sums[1:] / _divisor(whole)
    central = total / _divisor(whole) * _recentred(moments, moments[0] - mean)
    return torch.cat([mean.unsqueeze(0), _all_reduce(central, group)]), whole


class _AllReduce(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.group), None


_all_reduce: Callable[..., Tensor] = _AllReduce.apply
