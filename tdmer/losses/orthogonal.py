"""Soft orthogonality: low similarity of two features of one step (Eqs. 5, 6, 9)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_features, check_mask, check_positive, check_same_shape
from tdmer.losses._scale import may_overflow, row_scale
from tdmer.masks import zero_pads

Penalty = Callable[[Tensor], Tensor]


def orthogonal_loss(
    x: Float[Tensor, "*n d"],
    y: Float[Tensor, "*n d"],
    *,
    mask: Bool[Tensor, "*n"] | None = None,
    penalty: Penalty = torch.abs,
    eps: float = 1e-8,
) -> Float[Tensor, ""]:
    r"""Mean penalty on the cosine of paired features (Eqs. 5, 6, 9).

    ``mean_n penalty(cos(x_n, y_n))`` over the real pairs. The literal cosine is least at -1, a
    negated copy; its absolute value is least where the features are orthogonal, and equals the
    literal one for non-negative features.

    Args:
        x: Features, any leading axes: ``(b, d)`` pooled vectors or ``(b, t, d)`` steps.
        y: Features of the same shape.
        mask: True where a pair is real; None: all are. What stands elsewhere does not matter.
        penalty: Elementwise function of the cosine: ``torch.abs``, ``torch.square``,
            ``torch.relu``, or the identity for the literal equation.
        eps: Least norm a feature is divided by.

    Returns:
        A scalar, for the default penalty in [0, 1]; 0 if no pair is real. Float32 for lower
        precision input.

    Raises:
        TypeError: An input is not floating point, or ``mask`` is not bool.
        ValueError: The shapes differ, or ``eps`` is not above 0.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eqs. 5, 6, 9.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 4.0]])
        >>> orthogonal_loss(x, y)
        tensor(0.3000)
    """
    check_features("x", x)
    check_same_shape("y", y, "x", x)
    check_mask("mask", mask, x.shape[:-1])
    check_positive("eps", eps)
    precise = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = zero_pads(x.to(precise), mask), zero_pads(y.to(precise), mask)
    x_norm, y_norm = _norms(x, eps), _norms(y, eps)
    # No dot product is above the product of the norms.
    if may_overflow(x_norm * y_norm):
        x, y = x / row_scale(x), y / row_scale(y)
        x_norm, y_norm = _norms(x, eps), _norms(y, eps)
    # One division after the other: the product of two small norms could underflow.
    values = penalty((x * y).sum(dim=-1) / x_norm / y_norm)
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    # A penalty need not be 0 at 0, so padded pairs are left out of the sum, too.
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def _norms(x: Tensor, eps: float) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1).clamp_min(eps)
    return norms


class OrthogonalLoss(nn.Module):
    """:func:`orthogonal_loss` with its options held.

    Args:
        penalty: Elementwise function of the cosine.
        eps: Least norm a feature is divided by.

    Example:
        >>> OrthogonalLoss(penalty=torch.square)(torch.ones(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor(0.9800)
    """

    def __init__(self, *, penalty: Penalty = torch.abs, eps: float = 1e-8) -> None:
        super().__init__()
        check_positive("eps", eps)
        self.penalty = penalty
        self.eps = eps

    def extra_repr(self) -> str:
        """Return the options."""
        penalty = getattr(self.penalty, "__name__", repr(self.penalty))
        return f"penalty={penalty}, eps={self.eps}"

    def forward(
        self,
        x: Float[Tensor, "*n d"],
        y: Float[Tensor, "*n d"],
        *,
        mask: Bool[Tensor, "*n"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return :func:`orthogonal_loss` of ``x`` and ``y``."""
        return orthogonal_loss(x, y, mask=mask, penalty=self.penalty, eps=self.eps)
