"""Synthetic multimodal data whose shared and private factors, noise and gaps are known."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tdmer._checks import check_count, check_names, check_real, per_modality
from tdmer.data.dataset import MultimodalDataset

DIMS = {"text": 24, "audio": 16, "video": 12}


class Synthetic(NamedTuple):
    """A data set with the factors it was made from."""

    dataset: MultimodalDataset
    """The sequences, with labels in [-3, 3]."""
    shared: Tensor
    """The factors that all modalities of a sample have in common, ``(n, r)``."""
    private: dict[str, Tensor]
    """The factors that one modality alone has, ``(n, r)`` each."""


def make_synthetic(
    sizes: Mapping[str, int],
    *,
    dims: Mapping[str, int] = DIMS,
    factors: int = 4,
    signal: Mapping[str, float] | None = None,
    noise: float | Mapping[str, float] = 0.5,
    missing: float | Mapping[str, float] = 0.0,
    steps: tuple[int, int] = (4, 20),
    seed: int = 0,
) -> dict[str, Synthetic]:
    """Draw splits of one synthetic world.

    A step of modality ``m`` is ``g (A_m s + B_m p_m) + noise_m e``: shared factors ``s`` and
    private factors ``p_m`` of the sample, mixed by fixed matrices, with a gain ``g`` uniform in
    [0.5, 1.5] and a standard normal ``e`` per step. All factors have mean 0 and variance 1. The
    shared ones are normal; the private ones differ from modality to modality in their
    distribution (uniform, two-peaked, skewed, heavy-tailed, in turn), without which no comparison
    of distributions could tell shared from private. The label is ``3 tanh`` of a sum of fixed
    projections of the factors, one each, weighted by ``signal`` and scaled to variance 1.

    Args:
        sizes: Number of samples of each split, such as ``{"train": 800, "test": 200}``.
        dims: Feature width of every modality.
        factors: Number of shared factors, and of private factors of each modality.
        signal: Weight in the label of ``"shared"`` and of the modalities' private factors;
            names left out weigh 0. Default: everything weighs 1.
        noise: Standard deviation of the noise, one for all modalities or by name; the mixed
            factors have variance 2 per feature.
        missing: Probability that a sample lacks the modality, in [0, 1), one for all or by name.
            Each sample keeps at least one modality.
        steps: Least and greatest number of steps of a sequence; drawn per modality.
        seed: Seed of the world and of all splits.

    Returns:
        The splits by name.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or names an unknown modality.

    Example:
        >>> world = make_synthetic({"train": 6, "test": 3}, signal={"audio": 1.0})
        >>> train = world["train"]
        >>> len(train.dataset), train.dataset.dims, train.private["audio"].shape
        (6, {'text': 24, 'audio': 16, 'video': 12}, torch.Size([6, 4]))
    """
    check_names("dims", list(dims))
    for name, value in [*sizes.items(), *dims.items(), ("factors", factors), ("steps", steps[0])]:
        check_count(name, value)
    if steps[1] < steps[0]:
        raise ValueError(f"steps must be a least and a greatest number, got {steps}")
    signal = dict.fromkeys(["shared", *dims], 1.0) if signal is None else signal
    noises = per_modality("noise", noise, list(dims))
    gaps = per_modality("missing", missing, list(dims))
    for name in dims:
        check_real(f"noise of {name}", noises[name])
        check_real(f"missing of {name}", gaps[name], below=1.0)
    unknown = set(signal) - {"shared", *dims}
    total = sum(weight**2 for weight in signal.values())
    if unknown or not total:
        raise ValueError(
            f"signal must give a weight other than 0 to some of {['shared', *dims]}, got {signal}"
        )

    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(factors)
    mixing = {m: rng.normal(scale=scale, size=(2, factors, width)) for m, width in dims.items()}
    projections = {name: rng.normal(size=factors) for name in ["shared", *dims]}

    def draw(count: int) -> Synthetic:
        shared = rng.normal(size=(count, factors))
        private = {
            m: _private_factors(rng, number, (count, factors)) for number, m in enumerate(dims)
        }
        parts = {"shared": shared, **private}
        score = sum(
            weight * (parts[name] @ projections[name]) / np.linalg.norm(projections[name])
            for name, weight in signal.items()
        )
        there = rng.random((count, len(dims))) >= np.array([gaps[m] for m in dims])
        kept = rng.integers(len(dims), size=count)
        there[np.arange(count), kept] |= ~there.any(axis=1)
        inputs = {}
        for column, m in enumerate(dims):
            mixed = shared @ mixing[m][0] + private[m] @ mixing[m][1]
            lengths = rng.integers(steps[0], steps[1] + 1, size=count) * there[:, column]
            inputs[m] = [
                rng.uniform(0.5, 1.5, size=(length, 1)) * row
                + noises[m] * rng.normal(size=(length, dims[m]))
                for row, length in zip(mixed, lengths, strict=True)
            ]
        labels = 3 * np.tanh(score / np.sqrt(total))
        known = {m: torch.tensor(p).float() for m, p in private.items()}
        return Synthetic(MultimodalDataset(inputs, labels), torch.tensor(shared).float(), known)

    return {split: draw(count) for split, count in sizes.items()}


def _private_factors(
    rng: np.random.Generator, number: int, size: tuple[int, int]
) -> NDArray[np.float64]:
    # Mean 0 and variance 1 each, so that only the shape of the distribution differs.
    shapes = (
        lambda: rng.uniform(-np.sqrt(3), np.sqrt(3), size=size),
        lambda: rng.choice([-1.0, 1.0], size=size) * np.sqrt(0.96) + 0.2 * rng.normal(size=size),
        lambda: rng.exponential(size=size) - 1.0,
        lambda: rng.laplace(scale=np.sqrt(0.5), size=size),
    )
    return shapes[number % len(shapes)]()
