"""Ragged batches for tests: what stands in a padded step must never matter."""

import torch
from torch import Tensor


def ragged(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random features of ``shape`` with a mask of different lengths; NaN in every pad."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=dtype)
    b, t = shape[:2]
    lengths = torch.randint(1, t + 1, (b,), generator=generator)
    lengths[0] = t
    mask = torch.arange(t) < lengths[:, None]
    return x.masked_fill(~mask[..., None], float("nan")), mask


def with_pads(x: Tensor, mask: Tensor, steps: int, fill: float) -> tuple[Tensor, Tensor]:
    """Append padded steps, and write ``fill`` into all pads."""
    x = x.masked_fill(~mask[..., None], fill)
    more = x.new_full((x.shape[0], steps, *x.shape[2:]), fill)
    return torch.cat([x, more], 1), torch.cat([mask, mask.new_zeros(x.shape[0], steps)], 1)
