"""Dropout whose mask is cheap to draw on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_real
from tdmer.masks import is_readable

_LEVELS = 2**16


class Dropout(nn.Module):
    """What :class:`torch.nn.Dropout` does, at a fraction of its cost on a CPU.

    There one 64-bit draw decides over four entries, in place of one draw each. The probability is
    rounded to a multiple of ``2^-16``, and the kept entries are scaled by what was rounded to, so
    the expectation is exact. Elsewhere, and compiled, it is :func:`torch.nn.functional.dropout`.

    Args:
        p: Probability with which an entry is dropped in training, in [0, 1).

    Example:
        >>> dropout = Dropout(0.5)
        >>> sorted(set(dropout(torch.ones(1000)).tolist()))
        [0.0, 2.0]
        >>> dropout.eval()(torch.ones(2))
        tensor([1., 1.])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_real("p", p, below=1.0)
        self.p = p

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Drop entries of ``x`` in training."""
        if not (self.training and self.p):
            return x
        return x * _factors(x, self.p) if is_readable(x) else F.dropout(x, self.p)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"


class ReLUDropout(Dropout):
    """ReLU, then :class:`Dropout`. On a CPU one tensor is kept for the gradient, not three.

    Example:
        >>> ReLUDropout(0.5).eval()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Keep the positive entries of ``x``, and drop some of them in training."""
        if self.training and self.p and is_readable(x):
            return _relu_dropout(x, self.p)
        return super().forward(F.relu(x))


class _ReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        # The factors are not negative: before the ReLU they do what they do after it.
        out = _factors(x, p).mul_(x).clamp_min_(0)
        ctx.p = p
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        scale = grad.new_tensor(_levels(ctx.p)[1])  # rounded to the precision, as the factors are
        return torch.ops.aten.threshold_backward(grad, out, 0).mul_(scale), None


_relu_dropout: Callable[[Tensor, float], Tensor] = _ReLUDropout.apply


def _levels(p: float) -> tuple[int, float]:
    """Return how many of the levels are dropped, and what kept entries are scaled by."""
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    return dropped, _LEVELS / (_LEVELS - dropped)


def _factors(x: Tensor, p: float) -> Tensor:
    """Draw what every entry is multiplied by."""
    dropped, scale = _levels(p)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    draws.random_(-(2**63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(levels, dropped - _LEVELS // 2, out=torch.empty_like(x))
    return kept.mul_(scale)
