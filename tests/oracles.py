"""Independent float64 references, in NumPy and SciPy, of what the package computes."""

import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.special import expit, logit, softmax
from scipy.stats import moment


def central_moments(x: np.ndarray, n_moments: int) -> np.ndarray:
    """Mean and central moments of the rows of ``x``: ``scipy.stats.moment``."""
    x = np.asarray(x, dtype=np.float64).reshape(-1, x.shape[-1])
    with warnings.catch_warnings():
        # SciPy warns of lost precision where a column is constant and every moment of it is 0.
        warnings.simplefilter("ignore", RuntimeWarning)
        higher = [moment(x, order, axis=0) for order in range(2, n_moments + 1)]
    return np.stack([x.mean(axis=0), *higher])


def cmd(x: np.ndarray, y: np.ndarray, n_moments: int, span: float) -> float:
    """Eq. 2, term by term."""
    gaps = central_moments(x, n_moments) - central_moments(y, n_moments)
    return sum(np.sqrt(np.sum(gap**2)) / span**order for order, gap in enumerate(gaps, start=1))


def pairwise_cmd(samples: Sequence[np.ndarray], n_moments: int, span: float) -> float:
    """Eq. 3: Eq. 2 of every unordered pair."""
    return sum(cmd(x, y, n_moments, span) for x, y in combinations(samples, 2))


def moment_variance(x: np.ndarray, n_moments: int) -> np.ndarray:
    """Variance of every sample moment, summed over features, from its influence function.

    Leaving the sample ``x_i`` a little more weight moves ``C_k`` by
    ``c_i^k - C_k - k C_(k-1) c_i`` (and the mean by ``c_i``); the variance of a mean of such
    moves is their sum of squares over ``n (n - 1)``.
    """
    n = len(x)
    c = x - x.mean(axis=0)
    moves = [c]
    for k in range(2, n_moments + 1):
        lower = (c ** (k - 1)).mean(axis=0)
        moves.append(c**k - (c**k).mean(axis=0) - k * lower * c)
    return np.array([np.sum(move**2) / (n * (n - 1)) for move in moves])


def layer_norm(x: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and variance 1, without weights: Ba et al. 2016, with torch's epsilon."""
    x = np.asarray(x, dtype=np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def confidence(
    x: np.ndarray, logits: np.ndarray, state: dict[str, np.ndarray], eps: float = 1e-4
) -> np.ndarray:
    """``sigmoid(MLP(x) + scale logit(sum_k p_k^2))`` of every branch, by ``state``."""
    found = []
    for e in range(len(x)):
        hidden = np.maximum(x[e] @ state["hidden"][e] + state["hidden_bias"][e], 0)
        score = (hidden @ state["last"][e])[:, 0] + state["bias"][e]
        expected = np.square(softmax(logits[e], axis=-1)).sum(-1)
        found.append(expit(score + state["scale"][e] * logit(np.clip(expected, eps, 1 - eps))))
    return np.stack(found)
