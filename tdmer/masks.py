"""Pooling of sequences under a mask."""

import torch
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
        >>> x = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
        >>> zero_pads(x, torch.tensor([True, False]))
        tensor([[1., 2.],
                [0., 0.]])
    """
    check_features("x", x)
    check_mask("mask", mask, x.shape[:-1])
    mask = unless_full(mask)
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)


def unless_full(mask: Tensor | None) -> Tensor | None:
    """Return the mask, or None where it can be seen that every entry is real.

    On a CPU it is cheaper to look than to copy what is masked.
    """
    return None if mask is None or (is_readable(mask) and bool(mask.all())) else mask


def is_readable(mask: Tensor) -> bool:
    """Whether the values may decide what is done: on a CPU, where nothing is traced.

    Elsewhere a look at them would make a GPU wait, break a graph or be frozen into it.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or type(mask) is not Tensor
        or mask.device.type != "cpu"
    )


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
        >>> x = torch.tensor([[[2.0], [4.0], [float("nan")]]])
        >>> masked_mean(x, torch.tensor([[True, True, False]]))
        tensor([[3.]])
    """
    check_features("x", x, ndim=3)
    if mask is None:
        return x.sum(dim=1) / max(x.shape[1], 1)
    steps = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return zero_pads(x, mask).sum(dim=1) / steps
