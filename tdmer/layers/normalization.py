"""Per-feature normalisation of raw inputs, held in buffers."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_features, check_mask


class InputNormalization(nn.Module):
    """Standardises each feature with statistics of the real steps of a training set.

    Before :meth:`fit` it changes finite entries not at all. NaN and infinite entries become the
    mean (0 after normalisation), in training as in use. A feature that was constant in training
    is centred and keeps its scale.

    Args:
        features: Width ``f`` of the raw features.

    Example:
        >>> norm = InputNormalization(1)
        >>> norm.fit([(torch.tensor([[[1.0], [3.0], [float("inf")]]]), None)])
        1
        >>> norm(torch.tensor([[[1.0], [3.0], [float("nan")]]])).flatten()
        tensor([-1.,  1.,  0.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_count("features", features)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> int:
        """Take mean and standard deviation from the real, finite entries of a training set.

        One pass in float64, in which the statistics of each batch are merged into the running
        ones (Chan, Golub and LeVeque 1979), so that large means cost no precision.

        Args:
            batches: Pairs of features ``(b, t, f)`` and mask ``(b, t)`` or None.

        Returns:
            The number of real entries that were NaN or infinite.

        Raises:
            ValueError: No finite entry was seen at all.
        """
        width = self.mean.numel()
        count, mean, square = torch.zeros(3, width, dtype=torch.float64)
        nonfinite = 0
        for x, mask in batches:
            check_features("x", x, ndim=3, width=width)
            check_mask("mask", mask, x.shape[:-1])
            steps = x.reshape(-1, width) if mask is None else x[mask]
            # What float32 cannot hold is infinite to the forward pass.
            steps = steps.to(self.mean.dtype).cpu().double()
            finite = steps.isfinite()
            nonfinite += int((~finite).sum())
            steps = steps.masked_fill(~finite, 0.0)
            n = finite.sum(dim=0).double()
            batch_mean = steps.sum(dim=0) / n.clamp(min=1)
            batch_square = ((steps - batch_mean) * finite).square().sum(dim=0)
            total = (count + n).clamp(min=1)
            delta = batch_mean - mean
            mean = mean + delta * n / total
            square = square + batch_square + delta.square() * count * n / total
            count = count + n
        if not count.any():
            raise ValueError("batches must hold at least one real, finite entry, got none")
        std = (square / count.clamp(min=1)).sqrt()
        # A spread below float32's resolution at the mean is rounding, not signal.
        constant = std <= torch.finfo(torch.float32).eps * mean.abs().clamp(min=1e-30)
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(constant, 1.0))
        return nonfinite

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t f"]:
        """Normalise, with 0 for non-finite entries and for padded steps."""
        check_features("x", x, ndim=3, width=self.mean.numel())
        check_mask("mask", mask, x.shape[:-1])
        x = x.to(self.mean.dtype)
        keep = x.isfinite() if mask is None else x.isfinite() & mask.unsqueeze(-1)
        # The fill stops the gradient, too: that of NaN would otherwise be NaN.
        return ((x - self.mean) / self.std).masked_fill(~keep, 0.0)
