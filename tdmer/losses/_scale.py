"""Rows whose squares leave the range of their dtype: above 1.8e19 in float32."""

import math

import torch
from torch import Tensor

from tdmer.masks import is_readable


def may_overflow(values: Tensor) -> bool:
    """Whether a value, or their sum, is not finite, or cannot be looked at."""
    return not (is_readable(values) and math.isfinite(values.detach().sum().item()))


def row_scale(x: Tensor) -> Tensor:
    """Return what to divide each row by: its largest entry if squares overflow, else 1."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    return torch.where(largest > 2.0**30, largest, 1.0).clamp(max=torch.finfo(x.dtype).max)
