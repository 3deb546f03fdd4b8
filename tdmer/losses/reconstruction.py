"""Reconstruction of features from their decoupled parts (Eq. 4)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdmer._checks import check_features, check_mask, check_same_shape
from tdmer.losses._scale import may_overflow, row_scale
from tdmer.masks import zero_pads


def reconstruction_loss(
    output: Float[Tensor, "*n d"],
    target: Float[Tensor, "*n d"],
    *,
    mask: Bool[Tensor, "*n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Mean Euclidean distance between features and their reconstruction (Eq. 4).

    ``mean_n ||target_n - output_n||_2`` over the real steps: the norm is over features and not
    squared. Its gradient at a perfect reconstruction is 0.

    Args:
        output: Reconstructions, any leading axes.
        target: Features of the same shape. Both receive a gradient.
        mask: True where a step is real; None: all are. What stands elsewhere does not matter.

    Returns:
        A scalar of at least 0; 0 if no step is real; finite where the distances are. Float32 for
        lower precision input.

    Raises:
        TypeError: An input is not floating point, or ``mask`` is not bool.
        ValueError: The shapes differ.

    Source:
        Xu et al., "TDMER", ICASSP 2025, Eq. 4.

    Example:
        >>> reconstruction_loss(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor(2.5000)
    """
    check_features("output", output)
    check_features("target", target)
    check_same_shape("target", target, "output", output)
    check_mask("mask", mask, output.shape[:-1])
    precise = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
    difference = zero_pads(target.to(precise) - output.to(precise), mask)
    distances: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    if may_overflow(distances):
        scale = row_scale(difference)
        distances = torch.linalg.vector_norm(difference / scale, dim=-1) * scale.squeeze(-1)
    steps = max(distances.numel(), 1) if mask is None else mask.sum().clamp(min=1)
    # Dividing first keeps a sum of large distances finite.
    return (distances / steps).sum()
