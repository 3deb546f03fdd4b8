"""How moments are computed: in blocks of rows that stay in the cache, and over processes."""

from collections.abc import Callable, Iterator
from math import comb
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from tdmer.masks import is_traced

# Elements of a block: two float32 blocks are 2 MB, near the cores, and their operations are long
# beside the launching of them; on other devices larger ones hide the launches.
BLOCK = 2**18


def moments_of(x: Tensor, shares: Tensor | None, n_moments: int, span: float) -> Tensor:
    """Return mean and central moments of the rows ``(n, d)``, in units of the span.

    Rows weigh as ``shares`` says, which sum to 1; None: all the same. What stands in a row of
    share 0 does not matter.
    """
    padded = shares is not None
    if shares is None:
        precise = torch.promote_types(x.dtype, torch.float32)
        shares = x.new_full(x.shape[:1], 1.0 / x.shape[0], dtype=precise)
    dual = any(_unpack_dual(tensor).tangent is not None for tensor in (x, shares))
    if dual or shares.requires_grad or is_traced(x):
        return _plain_moments(x, shares, n_moments, span)
    return _blockwise_moments(x, shares, padded, n_moments, span)


def _plain_moments(x: Tensor, shares: Tensor, n_moments: int, span: float) -> Tensor:
    """Return the moments by differentiable operations."""
    shares = shares.unsqueeze(1)
    x = torch.where(shares != 0, x.to(shares.dtype), 0.0)
    mean = (shares * x).sum(dim=0)
    # Dividing before the power keeps every power of a large span finite.
    power = centred = torch.where(shares != 0, (x - mean) / span, 0.0)
    rows = [mean / span]
    for _ in range(1, n_moments):
        power = power * centred
        rows.append((shares * power).sum(dim=0))
    return torch.stack(rows)


class _BlockwiseMoments(torch.autograd.Function):
    """The moments from blocks of rows.

    No power of the input is kept. With ``c`` a centred row in units of the span, the gradient with
    respect to the row is ``share / span * (g_1 + sum_{k=2..K} k g_k (c^(k-1) - C_(k-1)))``, where
    ``C_1 = 0``: a polynomial in ``c``, evaluated by Horner's rule.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shares: Tensor, padded: bool, n_moments: int, span: float
    ) -> Tensor:
        c_buffer = _buffer(x, shares.dtype)
        power_buffer = torch.empty_like(c_buffer)
        moments = shares.new_zeros(n_moments, x.shape[1])
        if padded:
            mean = torch.zeros_like(moments[0])
            for block, share in _blocks(c_buffer, x, shares):
                mean.addmv_(_centre(block, 0.0, 1.0, share, padded, c_buffer).t(), share)
        else:
            mean = x.mean(dim=0, dtype=shares.dtype)
        first, *higher = moments.unbind()
        torch.div(mean, span, out=first)
        for block, share in _blocks(c_buffer, x, shares):
            power = c = _centre(block, mean, span, share, padded, c_buffer)
            target = power_buffer[: len(block)]
            columns = target.t()
            for row in higher:
                power = torch.mul(power, c, out=target)
                row.addmv_(columns, share)
        ctx.save_for_backward(x, shares, mean, moments)
        ctx.padded, ctx.span = padded, span
        return moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, shares, mean, moments = ctx.saved_tensors
        if torch.is_grad_enabled():  # This gradient will itself be differentiated.
            plain = _plain_moments(x, shares, len(moments), ctx.span)
            return *torch.autograd.grad(plain, x, grad, create_graph=True), None, None, None, None
        orders = torch.arange(1, len(moments) + 1, dtype=grad.dtype, device=grad.device)
        orders /= ctx.span * (1 if ctx.padded else len(x))
        slopes = grad * orders.unsqueeze(1)
        slopes[0].sub_((slopes[2:] * moments[1:-1]).sum(dim=0))
        top, *lower = reversed(slopes.unbind())
        buffer = _buffer(x, shares.dtype)
        result = torch.empty_like(x, dtype=shares.dtype)
        for block, share, out in _blocks(buffer, x, shares, result):
            c = _centre(block, mean, ctx.span, share, ctx.padded, buffer)
            value = top if lower else out.copy_(top)
            for slope in lower:
                value = torch.addcmul(slope, value, c, out=out)
            if ctx.padded:
                out.mul_(share.unsqueeze(1))
        return result.to(x.dtype), None, None, None, None


_blockwise_moments: Callable[..., Tensor] = _BlockwiseMoments.apply
_unpack_dual: Callable[..., Any] = unpack_dual


def _buffer(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory for a block of rows of ``x``."""
    size = BLOCK if x.device.type == "cpu" else 128 * BLOCK
    rows = max(1, min(len(x), size // max(x.shape[1], 1)))
    return x.new_empty(rows, x.shape[1], dtype=dtype)


def _blocks(buffer: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors in blocks of as many rows as the buffer has."""
    rows, n = len(buffer), len(tensors[0])
    for start in range(0, n, rows):
        # A single block needs no slice, whose launching costs as much as an operation on it.
        yield tensors if rows >= n else tuple(t[start : start + rows] for t in tensors)


def _centre(
    block: Tensor, mean: Tensor | float, span: float, share: Tensor, padded: bool, buffer: Tensor
) -> Tensor:
    """Write a block less its mean, in units of the span and 0 in pads, to the buffer."""
    c = torch.sub(block, mean, out=buffer[: len(block)])
    if span != 1.0:
        c /= span
    return c.masked_fill_((share == 0).unsqueeze(1), 0.0) if padded else c


def recentred(moments: Tensor, shift: Tensor) -> Tensor:
    """Return the orders from 2 about a centre that lies ``shift`` below the mean."""
    _, *central = moments.unbind(dim=-2)
    about = [torch.ones_like(shift), torch.zeros_like(shift), *central]
    rows = [
        sum((comb(k, j) * about[j] * shift ** (k - j) for j in range(k)), start=about[k])
        for k in range(2, len(about))
    ]
    return torch.stack(rows, dim=-2) if rows else moments[..., 1:, :]


def divisor(total: Tensor) -> Tensor:
    """Return what to divide by: the total, or 1 where it is 0."""
    return torch.where(total == 0, 1.0, total)


def reduced(moments: Tensor, total: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return moments and weight of the whole sample from those of every process's part."""
    sums = all_reduce(torch.cat([total.view(1), total * moments[0]]), group)
    whole = sums[0]
    mean = sums[1:] / divisor(whole)
    central = total / divisor(whole) * recentred(moments, moments[0] - mean)
    return torch.cat([mean.unsqueeze(0), all_reduce(central, group)]), whole


def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the sum over processes, whose gradient is the sum of the processes' gradients."""
    return _summed(x, group)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return all_reduce(tangent, ctx.group)


_summed: Callable[..., Tensor] = _AllReduce.apply
