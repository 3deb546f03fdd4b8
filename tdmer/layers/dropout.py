"""Dropout whose mask is cheap to draw on a CPU."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_real

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
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None)
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
        kept = torch.ge(levels, dropped - _LEVELS // 2, out=torch.empty_like(x))
        return x * kept.mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"
