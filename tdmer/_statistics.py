"""Mean and spread of features, gathered batch by batch."""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from tdmer._checks import check_features, check_mask


class FeatureStatistics:
    """Running mean and spread of every feature over real, finite entries, in float64.

    The statistics of each batch are merged into the running ones (Chan, Golub and LeVeque 1979),
    so that large means cost no precision.

    Args:
        features: Width ``f`` of the raw features.
        dtype: Floating point type in which they will be normalised: what it cannot hold is
            infinite.

    Example:
        >>> found = FeatureStatistics(1)
        >>> found.update(torch.tensor([[[1.0], [3.0], [float("inf")]]]))
        >>> found.mean, found.count, found.nonfinite
        (tensor([2.], dtype=torch.float64), tensor([2.], dtype=torch.float64), 1)
    """

    dtype: torch.dtype
    count: Tensor
    mean: Tensor
    square: Tensor
    nonfinite: int

    def __init__(self, features: int, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.count, self.mean, self.square = torch.zeros(3, features, dtype=torch.float64)
        self.nonfinite = 0

    @torch.no_grad()
    def update(self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None) -> None:
        """Take in the real steps of a batch; entries that are not finite are only counted."""
        width = self.mean.numel()
        check_features("x", x, ndim=3, width=width)
        check_mask("mask", mask, x.shape[:-1])
        steps = x.reshape(-1, width) if mask is None else x[mask]
        steps = steps.to(self.dtype).cpu().double()
        finite = steps.isfinite()
        self.nonfinite += int((~finite).sum())
        steps = steps.masked_fill(~finite, 0.0)
        n = finite.sum(dim=0).double()
        mean = steps.sum(dim=0) / n.clamp(min=1)
        square = ((steps - mean) * finite).square().sum(dim=0)
        total = (self.count + n).clamp(min=1)
        delta = mean - self.mean
        self.mean = self.mean + delta * n / total
        self.square = self.square + square + delta.square() * self.count * n / total
        self.count = self.count + n

    @property
    def std(self) -> Float64[Tensor, " f"]:
        """Standard deviation of every feature (of the population)."""
        return (self.square / self.count.clamp(min=1)).sqrt()

    @property
    def scale(self) -> Float64[Tensor, " f"]:
        """Divisor of centred features, their standard deviation, or 1 where they are constant."""
        std = self.std
        # A spread below the resolution at the mean is rounding, not signal.
        constant = std <= torch.finfo(self.dtype).eps * self.mean.abs().clamp(min=1e-30)
        return std.masked_fill(constant, 1.0)
