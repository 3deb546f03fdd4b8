"""Hypothesis strategies shared by the tests, and how many examples they run."""

import os

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

# `PROPERTY_EXAMPLES=1000 pytest` is the thorough run.
thorough = settings(
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "40")), deadline=None, derandomize=True
)

# Sixteenths: shifts and the sums of few values are exact, so a property holds to rounding.
_unit_values = st.integers(0, 16).map(lambda sixteenths: sixteenths / 16)


@st.composite
def samples(draw: st.DrawFn, d: int | None = None, least: int = 1, most: int = 6) -> Tensor:
    """A float64 sample ``(n, d)`` with values in [0, 1]."""
    n = draw(st.integers(least, most))
    width = draw(st.integers(1, 4)) if d is None else d
    return torch.from_numpy(draw(arrays(np.float64, (n, width), elements=_unit_values)))


@st.composite
def several_samples(draw: st.DrawFn, number: int) -> list[Tensor]:
    """Samples of one width, each with a length of its own."""
    width = draw(st.integers(1, 4))
    return [draw(samples(d=width)) for _ in range(number)]


@st.composite
def masked_samples(draw: st.DrawFn, d: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A sample, a mask with at least one real row, and the real rows alone."""
    x = draw(samples(d=d))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))))
    mask[draw(st.integers(0, len(x) - 1))] = True
    return x, mask, x[mask]


@st.composite
def shifted_samples(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """A sample, itself moved by a constant, and the length of that constant."""
    x = draw(samples())
    shift = torch.from_numpy(
        draw(arrays(np.float64, x.shape[1], elements=st.integers(-64, 64).map(lambda i: i / 16)))
    )
    return x, x + shift, float(shift.norm())
