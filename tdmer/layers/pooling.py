"""Pooling of sequences under a mask."""

from jaxtyping import Bool, Float
from torch import Tensor

from tdmer._checks import check_features, check_mask


def zero_pads(x: Float[Tensor, "*n d"], mask: Bool[Tensor, "*n"] | None) -> Float[Tensor, "*n d"]:
    """Set the masked entries to 0, whatever stands in them (NaN and inf included).

    Args:
        x: Features.
        mask: True where an entry is real; None: all are.

    Returns:
        The features with zeros where ``mask`` is False, and no gradient there.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
        >>> zero_pads(x, torch.tensor([True, False]))
        tensor([[1., 2.],
                [0., 0.]])
    """
    check_features("x", x)
    check_mask("mask", mask, x.shape[:-1])
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)


def masked_mean(
    x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"] | None = None
) -> Float[Tensor, "b d"]:
    """Mean over the real steps of each sequence; 0 where a sequence has none.

    Args:
        x: Sequences, shape ``(b, t, d)``.
        mask: True where a step is real, shape ``(b, t)``; None: all are.

    Returns:
        One vector per sequence, shape ``(b, d)``.

    Raises:
        TypeError: ``x`` is not floating point, or ``mask`` is not bool.
        ValueError: The shapes do not fit.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[2.0], [4.0], [float("nan")]]])
        >>> masked_mean(x, torch.tensor([[True, True, False]]))
        tensor([[3.]])
    """
    check_features("x", x, ndim=3)
    if mask is None:
        return x.sum(dim=1) / max(x.shape[1], 1)
    steps = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return zero_pads(x, mask).sum(dim=1) / steps
