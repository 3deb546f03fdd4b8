"""Per-feature normalisation of raw inputs, held in buffers."""

import warnings
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tdmer._checks import check_count, check_features, check_mask, check_positive
from tdmer._statistics import FeatureStatistics
from tdmer.masks import is_readable

# Standardised features have a root mean square of 1, be they of another training set as well.
_LARGE = 10.0


class InputNormalization(nn.Module):
    """Standardises each feature with statistics of the real steps of a training set.

    Before :meth:`fit` it changes finite entries not at all, and warns once if it is trained on
    features far from the scale of standardised ones, where it can see them: on a CPU. NaN and
    infinite entries become the mean (0 after normalisation), in training as in use. A feature that
    was constant in training is centred and keeps its scale. One that almost never varied there may
    vary later by any number of its standard deviations, so that few samples would decide
    everything: after :meth:`fit` values end at ``limit``. ``half()`` and ``bfloat16()`` leave
    statistics and result in float32: the scale of raw features is not ours, and float16 has no
    numbers below 6e-8.

    Args:
        features: Width ``f`` of the raw features.
        limit: Greatest distance from the mean, in standard deviations.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> norm = InputNormalization(1)
        >>> norm.fit([(torch.tensor([[[1.0], [3.0], [float("inf")]]]), None)])
        1
        >>> norm(torch.tensor([[[1.0], [3.0], [float("nan")]]])).flatten()
        tensor([-1.,  1.,  0.])
    """

    mean: Tensor
    std: Tensor
    # Beyond all numbers before the fit.
    bound: Tensor
    # Whether the first features of a training have been looked at.
    _looked = False

    def __init__(self, features: int, *, limit: float = 5.0) -> None:
        super().__init__()
        check_count("features", features)
        check_positive("limit", limit)
        self.limit = limit
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("bound", torch.tensor(torch.finfo(torch.float32).max))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"features={self.mean.numel()}, limit={self.limit:g}"

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> int:
        """Take mean and standard deviation from the real, finite entries of a training set.

        Args:
            batches: Pairs of features ``(b, t, f)`` and mask ``(b, t)`` or None.

        Returns:
            The number of real entries that were NaN or infinite.

        Raises:
            ValueError: No finite entry was seen at all.
        """
        found = FeatureStatistics(self.mean.numel(), self.mean.dtype)
        for x, mask in batches:
            found.update(x, mask)
        self.take(found)
        return found.nonfinite

    @torch.no_grad()
    def take(self, found: FeatureStatistics) -> None:
        """Take mean and standard deviation from statistics that were gathered elsewhere.

        Raises:
            ValueError: They are of no finite entry at all.
        """
        if not found.count.any():
            raise ValueError("batches must hold at least one real, finite entry, got none")
        self.mean.copy_(found.mean)
        self.std.copy_(found.scale)
        self.bound.fill_(self.limit)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t f"]:
        """Normalise, in float32 at least; 0 for non-finite entries and for padded steps."""
        check_features("x", x, ndim=3, width=self.mean.numel())
        check_mask("mask", mask, x.shape[:-1])
        if self.training and is_readable(x) and not self._looked:
            self._looked = True
            self._warn_if_raw(x, mask)
        # Whatever the buffers were cast to, float16 might overflow and hold a spread of 0.
        precise = torch.promote_types(self.mean.dtype, torch.float32)
        x = x.to(precise)
        mean, std, bound = (part.to(precise) for part in (self.mean, self.std, self.bound))
        keep = x.isfinite() if mask is None else x.isfinite() & mask.unsqueeze(-1)
        # The fill stops the gradient, too: that of NaN would otherwise be NaN.
        normalized = ((x - mean) / std.masked_fill(std == 0, 1.0)).masked_fill(~keep, 0.0)
        return normalized.clamp(-bound, bound)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InputNormalization":
        mean, std, bound = self.mean, self.std, self.bound
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        precise = torch.promote_types(self.mean.dtype, torch.float32)
        if self.mean.dtype != precise:
            self.mean, self.std, self.bound = (
                x.to(self.mean.device, precise) for x in (mean, std, bound)
            )
        return self

    def _warn_if_raw(self, x: Tensor, mask: Tensor | None) -> None:
        if self.mean.any() or (self.std != 1).any():
            return
        found = FeatureStatistics(self.mean.numel(), self.mean.dtype)
        found.update(x, mask)
        size = float((found.std.square() + found.mean.square()).max().sqrt())
        if size > _LARGE:
            warnings.warn(
                f"features are trained on as they are, one with a root mean square of {size:.3g}: "
                "fit the normalisation to the training set first, such as by "
                "TDMER.fit_normalization, or bring features to a scale of about 1",
                stacklevel=2,
            )
