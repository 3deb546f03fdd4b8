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


# Cosine and sine of angles whose both are rational.
_angles = st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.8, 0.6), (5 / 13, 12 / 13)])
_lengths = st.sampled_from([0.25, 1.0, 3.0, 512.0])
_signs = st.sampled_from([-1.0, 1.0])


@st.composite
def _turned(draw: st.DrawFn, planes: list[tuple[float, float]], d: int) -> Tensor:
    """Rows ``(n, d)`` that hold a point of a plane each, on two features in any order and sign."""
    rows = torch.zeros(len(planes), d, dtype=torch.float64)
    rows[:, :2] = torch.tensor(planes, dtype=torch.float64)
    signs = draw(st.lists(_signs, min_size=d, max_size=d))
    return (rows * torch.tensor(signs).double())[:, draw(st.permutations(range(d)))]


@st.composite
def paired_features(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """Two features ``(n, d)`` of any lengths, and the mean of ``|cos|`` of their rows."""
    n, d = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    angles = draw(st.lists(_angles, min_size=n, max_size=n))
    # Both on the axes (u, v) of one turned plane: u and cos u + sin v.
    both = draw(_turned([(1.0, 0.0)] * n + angles, d))
    lengths = draw(st.lists(st.tuples(_lengths, _lengths, _signs), min_size=n, max_size=n))
    scale = torch.tensor(lengths).double().T.unsqueeze(2)
    x, y = scale[0] * both[:n], scale[1] * scale[2] * both[n:]
    return x, y, sum(cosine for cosine, _ in angles) / n


@st.composite
def reconstructions(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """Features ``(n, d)``, their reconstruction, and the mean distance of the rows."""
    target = draw(samples().filter(lambda x: x.shape[1] >= 2))
    n, d = target.shape
    lengths = draw(st.lists(_lengths, min_size=n, max_size=n))
    angles = draw(st.lists(_angles, min_size=n, max_size=n))
    moves = torch.tensor(lengths).double().unsqueeze(1) * draw(_turned(angles, d))
    return target + moves, target, sum(lengths) / n


@st.composite
def shifted_logits(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """Logits of modalities ``(b, m, k)`` apart by shifts, edges that sum to 1, and Eq. 8."""
    b, m, k = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 4))
    shifts = sorted(draw(st.lists(st.integers(-8, 8), min_size=m, max_size=m)))
    base = draw(arrays(np.float64, (b, 1, k), elements=_unit_values))
    logits = torch.from_numpy(base) + torch.tensor(shifts).double().view(1, m, 1)
    edges = (torch.ones(m, m) - torch.eye(m)).double().expand(b, m, m) / (m * (m - 1))
    # A gap between neighbours lies between every modality below it and every one above.
    gaps = [(i + 1) * (m - i - 1) * (shifts[i + 1] - shifts[i]) for i in range(m - 1)]
    return logits, edges, 2 * k * sum(gaps) / (m * (m - 1))


@st.composite
def known_probabilities(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits ``(b, k)``, moved by a constant a row, and the probabilities they stand for."""
    b, k = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    counts = draw(arrays(np.int64, (b, k), elements=st.integers(1, 8)))
    shift = draw(arrays(np.float64, (b, 1), elements=st.integers(-20, 20).map(float)))
    probabilities = torch.from_numpy(counts / counts.sum(axis=1, keepdims=True))
    return probabilities.log() + torch.from_numpy(shift), probabilities
