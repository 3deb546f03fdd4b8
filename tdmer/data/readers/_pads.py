"""Where the real steps of padded arrays lie.

One pass over an array finds the first and the last step of every sample that is not all zero; what
a file or caller says about lengths is then checked against that, or derived from it.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import NDArray

from tdmer.data.dataset import as_array, kind

PADS = ("detect", "left", "right", "both", "none")

# A side holds the pads once it has more than this many times the samples of the other side.
_CLEAR = 2


class Spans(NamedTuple):
    """The real steps of every sample, from ``start`` up to, not including, ``stop``."""

    start: Int[np.ndarray, " n"]
    stop: Int[np.ndarray, " n"]


def find_extent(x: Shaped[np.ndarray, "n t f"]) -> Spans:
    """Return where the steps of every sample that are not all zero begin and end.

    NaN and ±inf are no zeros. A sample of zeros only has no step: its start is ``t``, its stop 0.

    Example:
        >>> x = np.array([[[0.0], [2.0], [0.0], [np.nan], [0.0]], [[0.0]] * 5])
        >>> find_extent(x)
        Spans(start=array([1, 5]), stop=array([4, 0]))
    """
    steps = x.shape[1]
    real: NDArray[np.bool_] = np.any(x, axis=2)
    some = np.any(real, axis=1)
    start = np.where(some, real.argmax(axis=1), steps)
    stop = np.where(some, steps - real[:, ::-1].argmax(axis=1), 0)
    return Spans(start, stop)


def spans_from_zeros(
    name: str,
    arrays: Sequence[Shaped[np.ndarray, "_ _ f"]],
    pads: str = "detect",
    usual: Literal["left", "right"] | None = None,
) -> list[Spans]:
    """Return what is not padded of arrays of one modality, such as one for each split.

    Zeros at an end of the time axis are pads: at the ``"left"``, the ``"right"``, ``"both"`` ends
    or, where zeros are data, ``"none"``. ``"detect"``: at one side, which is decided for all
    arrays together: that at which more than twice as many samples have zeros as at the other, so
    that true zeros at the other end of some samples are kept. Samples of zeros only have no vote
    and, unless zeros are data, no step.

    Args:
        name: the arrays in messages.
        arrays: the arrays.
        pads: where pads are, one of :data:`PADS`.
        usual: the side where neither wins, as the format says; None: that is an error.

    Raises:
        ValueError: neither side wins and none is usual.

    Example:
        >>> x = np.array([[[0.0], [1.0], [0.0]], [[1.0], [0.0], [0.0]], [[3.0], [2.0], [0.0]]])
        >>> spans_from_zeros("x", [x])
        [Spans(start=array([0, 0, 0]), stop=array([2, 1, 2]))]
        >>> spans_from_zeros("x", [x], "both")
        [Spans(start=array([1, 0, 0]), stop=array([2, 1, 2]))]
    """
    extents = [find_extent(x) for x in arrays]
    if pads == "detect":
        pads = _find_side(name, arrays, extents, usual)
    found = []
    for x, (start, stop) in zip(arrays, extents, strict=True):
        first = start if pads in ("left", "both") else np.zeros_like(start)
        last = stop if pads in ("right", "both") else np.full_like(stop, x.shape[1])
        # Of zeros only, a sample begins behind its end.
        found.append(Spans(np.minimum(first, last), last))
    return found


def _find_side(
    name: str,
    arrays: Sequence[Shaped[np.ndarray, "_ _ f"]],
    extents: Sequence[Spans],
    usual: Literal["left", "right"] | None,
) -> str:
    left = right = 0
    for x, (start, stop) in zip(arrays, extents, strict=True):
        left += int(((start < stop) & (start > 0)).sum())
        right += int(((start < stop) & (stop < x.shape[1])).sum())
    if max(left, right) > _CLEAR * min(left, right) or left == right == 0:
        return "left" if left > right else "right"
    if usual is None:
        raise ValueError(
            f"{name} must have its pads, steps of zeros, on one side: {left} samples begin and "
            f"{right} end with zeros; pass lengths, masks or pads"
        )
    return usual


def spans_from_lengths(name: str, values: Any, x: Shaped[np.ndarray, "n t f"]) -> Spans:
    """Return the spans of declared lengths, on that side where nothing but zeros lies outside.

    Each sample has its own side; where both would do, it is that which does for more samples.

    Raises:
        ValueError: a length is no whole number in [0, t], or values would be cut off on either
            side.

    Example:
        >>> x = np.array([[[0.0], [1.0], [0.0]], [[0.0], [0.0], [2.0]]])
        >>> spans_from_lengths("x", [2, 1], x)
        Spans(start=array([1, 2]), stop=array([3, 3]))
    """
    lengths, (count, steps, _) = as_array(name, values), x.shape
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        raise ValueError(f"{name} must be {count} whole numbers, got {kind(lengths)}")
    wrong = (lengths < 0) | (lengths > steps)
    if wrong.any():
        number = int(wrong.argmax())
        raise ValueError(f"{name}[{number}] must be in [0, {steps}], got {lengths[number]}")
    lengths = lengths.astype(np.int64)
    start, stop = find_extent(x)
    right, left = stop <= lengths, start >= steps - lengths
    cut_off = ~(left | right)
    if cut_off.any():
        number = int(cut_off.argmax())
        raise ValueError(
            f"{name}[{number}] must not cut values off, got {lengths[number]}, and values from "
            f"step {start[number]} to {stop[number] - 1}; correct it, or pass masks to from_arrays"
        )
    usual = right if right.sum() >= left.sum() else ~left
    first = np.where(usual, 0, steps - lengths)
    return Spans(first, first + lengths)


def spans_from_mask(name: str, mask: Any, x: Shaped[np.ndarray, "n t ..."]) -> Spans:
    """Return the spans of a mask, True or 1 where a step is real.

    Raises:
        ValueError: the mask has other values or another shape, or the real steps of a sample do
            not follow one another.

    Example:
        >>> mask = np.array([[True, True, False], [False, False, True]])
        >>> spans_from_mask("mask", mask, np.ones((2, 3, 4)))
        Spans(start=array([0, 2]), stop=array([2, 3]))
    """
    mask = as_array(name, mask)
    if mask.shape != x.shape[:2] or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{name} must be 0 and 1 of shape {x.shape[:2]}, got {kind(mask)}")
    mask = mask.astype(bool)
    edges = np.diff(mask, axis=1, prepend=False).sum(axis=1)
    if (edges > 2).any():
        number = int((edges > 2).argmax())
        raise ValueError(f"{name}[{number}] must have no hole between real steps, got one")
    start = mask.argmax(axis=1)
    return Spans(start, start + mask.sum(axis=1))


def spans_from_alignment(spans: Spans | None, x: Shaped[np.ndarray, "n t f"]) -> Spans | None:
    """Return the spans of an array that is aligned, step by step, to one of known spans.

    True zeros at the ends of the known spans are then real steps; samples of zeros only have none.
    None: there are no such spans, or the array has values outside of them.

    Example:
        >>> x = np.array([[[0.0], [1.0], [0.0], [0.0]], [[0.0]] * 4])
        >>> spans_from_alignment(Spans(np.array([0, 0]), np.array([3, 2])), x)
        Spans(start=array([0, 0]), stop=array([3, 0]))
    """
    start, stop = find_extent(x)
    if spans is None or (start < spans.start).any() or (stop > spans.stop).any():
        return None
    return Spans(spans.start, np.where(stop > 0, spans.stop, spans.start))


def cut(x: Shaped[np.ndarray, "n t f"], spans: Spans) -> list[Shaped[np.ndarray, "_ f"]]:
    """Return the real steps of every sample as views of the array."""
    bounds = zip(x, spans.start.tolist(), spans.stop.tolist(), strict=True)
    return [sample[start:stop] for sample, start, stop in bounds]
