"""Where the real steps of padded arrays lie.

One pass over an array finds the first and the last step of every sample that is not all zero; what
a file or caller says about lengths is then checked against that, or derived from it.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import NDArray

from tdmer.data.dataset import as_array, kind

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
    name: str, x: Shaped[np.ndarray, "n t f"], usual: Literal["left", "right"] | None = None
) -> Spans:
    """Detect the side of the pads, and return what is not padded.

    Zeros at one end of the time axis are pads. The side is decided for the whole array: that at
    which more than twice as many samples have zeros as at the other, so that true zeros at the
    other end of some samples are kept. Samples of zeros only have no vote and no step.

    Args:
        name: the array in messages.
        x: the array.
        usual: the side where neither wins, as the format says; None: that is an error.

    Raises:
        ValueError: neither side wins and none is usual.

    Example:
        >>> x = np.array([[[0.0], [1.0], [0.0]], [[1.0], [0.0], [0.0]], [[3.0], [2.0], [0.0]]])
        >>> spans_from_zeros("x", x)
        Spans(start=array([0, 0, 0]), stop=array([2, 1, 2]))
    """
    (start, stop), steps = find_extent(x), x.shape[1]
    left = int(((start < stop) & (start > 0)).sum())
    right = int(((start < stop) & (stop < steps)).sum())
    side: str | None = usual
    if max(left, right) > _CLEAR * min(left, right) or left == right == 0:
        side = "left" if left > right else "right"
    if side is None:
        raise ValueError(
            f"{name} must have its pads, steps of zeros, on one side: {left} samples begin and "
            f"{right} end with zeros; pass lengths or masks"
        )
    if side == "right":
        return Spans(np.zeros_like(stop), stop)
    return Spans(start, np.full_like(stop, steps))


def spans_from_lengths(name: str, values: Any, x: Shaped[np.ndarray, "n t f"]) -> Spans:
    """Return the spans of declared lengths, on the side where nothing but zeros lies outside.

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
    beyond_right, beyond_left = stop > lengths, start < steps - lengths
    if not beyond_right.any():
        return Spans(np.zeros_like(lengths), lengths)
    if not beyond_left.any():
        return Spans(steps - lengths, np.full_like(lengths, steps))
    number = int(min(beyond_right, beyond_left, key=np.count_nonzero).argmax())
    raise ValueError(
        f"{name}[{number}] must not cut values off, got {lengths[number]}, and values from step "
        f"{start[number]} to {stop[number] - 1}; correct it, or pass masks to from_arrays"
    )


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
