import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdmer.data.readers._pads import (
    Spans,
    cut,
    spans_from_alignment,
    spans_from_lengths,
    spans_from_mask,
    spans_from_zeros,
)
from tests.strategies import thorough


def steps(*rows):
    """One feature per step, one row per sample."""
    return np.array(rows, np.float32)[..., None]


def detect(x, usual=None):
    (spans,) = spans_from_zeros("x", [x], usual=usual)
    return [tuple(span) for span in zip(*map(np.ndarray.tolist, spans), strict=True)]


def pad(sequences, side, longest):
    x = np.zeros((len(sequences), longest, sequences[0].shape[1]), sequences[0].dtype)
    for row, sequence in enumerate(sequences):
        start = 0 if side == "right" else longest - len(sequence)
        x[row, start : start + len(sequence)] = sequence
    return x


@st.composite
def ragged(draw):
    """Sequences with zeros and NaN inside, but ends that are no zeros; some are missing."""
    width = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i4"]))
    values = st.sampled_from(
        [0.0, 1.0, -2.0] if dtype == "<i4" else [0.0, 1.0, -0.0, np.nan, -np.inf]
    )
    sequences = []
    for length in draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)):
        rows = [[draw(values) for _ in range(width)] for _ in range(length)]
        x = np.array(rows, float).reshape(length, width)
        for end in (x[:1], x[-1:]):
            end[:, draw(st.integers(0, width - 1))] = draw(st.sampled_from([3.0, -1.0]))
        sequences.append(x.astype(dtype))
    return sequences


# Zeros


@given(ragged(), st.sampled_from(["left", "right"]), st.integers(0, 2), st.booleans())
@thorough
def test_sequences_come_back_from_either_side(sequences, side, more, known):
    longest = max(1, *map(len, sequences)) + more if len(sequences) > 1 else 5 + more
    x = pad(sequences, side, longest)
    (spans,) = spans_from_zeros("x", [x], usual="left" if known else None)
    for found, sequence in zip(cut(x, spans), sequences, strict=True):
        assert found.dtype == sequence.dtype
        np.testing.assert_array_equal(found, sequence)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        # Zeros inside are kept, on either side.
        (steps([1, 0, 2, 0], [1, 0, 0, 3]), [(0, 3), (0, 4)]),
        (steps([0, 1, 0, 2], [1, 0, 0, 3]), [(1, 4), (0, 4)]),
        # True zeros at the other end: one sample of four, then none on the pads' side.
        (steps([0, 1, 0], [1, 0, 0], [2, 2, 0], [3, 0, 0]), [(0, 2), (0, 1), (0, 2), (0, 1)]),
        (steps([0, 1, 0], [0, 0, 1], [0, 2, 2], [0, 0, 3]), [(1, 3), (2, 3), (1, 3), (2, 3)]),
        # No pads; a sample of zeros only; nothing but such samples.
        (steps([1, 2], [0, 0]), [(0, 2), (0, 0)]),
        (steps([0, 1], [0, 0]), [(1, 2), (2, 2)]),
        (steps([0, 0], [0, 0]), [(0, 0), (0, 0)]),
        # NaN and infinities are values.
        (steps([1, np.nan, 0], [-np.inf, 0, 0]), [(0, 2), (0, 1)]),
    ],
)
def test_the_side_is_that_of_most_samples(x, expected):
    assert detect(x) == expected


def test_a_tie_takes_the_usual_side_and_is_else_an_error():
    x = steps([0, 1, 0], [0, 2, 2])
    assert detect(x, "right") == [(0, 2), (0, 3)]
    assert detect(x, "left") == [(1, 3), (1, 3)]
    message = (
        r"x must have its pads, .*: 2 samples begin and 1 end with zeros; pass lengths, masks "
    )
    with pytest.raises(ValueError, match=message):
        detect(x)
    # Three against one is no tie, whatever is usual.
    x = steps([0, 1, 0], [0, 2, 2], [0, 0, 1])
    assert detect(x, "right") == detect(x) == [(1, 3), (1, 3), (2, 3)]
    assert detect(x[:, ::-1], "left") == [(0, 2), (0, 2), (0, 1)]


@pytest.mark.parametrize(
    ("pads", "expected"),
    [
        ("left", [(1, 4), (0, 4), (4, 4)]),
        ("right", [(0, 4), (0, 2), (0, 0)]),
        ("both", [(1, 4), (0, 2), (0, 0)]),
        ("none", [(0, 4), (0, 4), (0, 4)]),
    ],
)
def test_the_side_may_be_given(pads, expected):
    x = steps([0, 1, 0, 2], [3, 1, 0, 0], [0, 0, 0, 0])
    (spans,) = spans_from_zeros("x", [x], pads)
    assert [tuple(span) for span in np.stack(spans, 1).tolist()] == expected


@given(ragged(), st.lists(st.sampled_from(["left", "right"]), min_size=5, max_size=5))
@thorough
def test_samples_padded_on_either_side_come_back(sequences, sides):
    longest = max(1, *map(len, sequences)) if len(sequences) > 1 else 5
    rows = zip(sequences, sides, strict=False)
    x = np.concatenate([pad([sequence], side, longest) for sequence, side in rows])
    (spans,) = spans_from_zeros("x", [x], "both")
    for found, sequence in zip(cut(x, spans), sequences, strict=True):
        np.testing.assert_array_equal(found, sequence)


def test_arrays_of_one_modality_are_decided_together():
    # By itself the second would have its pads on the right, and the third be in doubt.
    arrays = [steps([0, 1, 2], [0, 3, 1], [0, 0, 2]), steps([1, 0]), steps([0, 1], [1, 0])]
    spans = spans_from_zeros("x", [arrays[0], arrays[0], *arrays[1:]])
    assert [(s.start.tolist(), s.stop.tolist()) for s in spans[2:]] == [
        ([0], [2]),
        ([1, 0], [2, 2]),
    ]


def test_one_small_feature_makes_a_step_real():
    x = np.zeros((2, 3, 4))
    x[0, 0, 3] = x[1, 1, 0] = 1e-300
    x[1, 0] = 1
    assert detect(x) == [(0, 1), (0, 2)]


def test_samples_are_views_and_the_pass_needs_little_memory():
    x = np.zeros((200, 500, 74), np.float32)
    x[:, :300] = 1
    tracemalloc.start()
    parts = cut(x, *spans_from_zeros("x", [x]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(np.shares_memory(part, x) for part in parts)
    assert {len(part) for part in parts} == {300}
    assert peak < x.nbytes / 50


# Lengths


def test_lengths_find_their_side():
    right, left = steps([1, 0, 0], [2, 2, 0]), steps([0, 0, 1], [0, 2, 2])
    lengths = np.array([2, 2], np.uint8)
    for x, expected in ((right, [(0, 2), (0, 2)]), (left, [(1, 3), (1, 3)])):
        spans = spans_from_lengths("x", lengths, x)
        assert [tuple(span) for span in np.stack(spans, 1).tolist()] == expected
    # Zeros only, and no pads at all: both sides would do.
    for lengths in ([0, 2, 3], [0, 0, 0]):
        spans = spans_from_lengths("x", lengths, np.zeros((3, 3, 1)))
        assert (spans.stop - spans.start).tolist() == lengths


def test_lengths_find_the_side_of_every_sample():
    x = steps([0, 0, 1, 2], [1, 2, 0, 0], [0, 0, 1, 3], [0, 0, 1, 0], [0, 1, 0, 0])
    spans = spans_from_lengths("x", [2, 2, 2, 2, 4], x)
    # The fourth ends with a true zero.
    assert [part.ravel().tolist() for part in cut(x, spans)] == [
        [1, 2], [1, 2], [1, 3], [1, 0], [0, 1, 0, 0]
    ]  # fmt: skip
    # Both would do for the last: its side is that of most.
    for most, expected in (([0, 0, 1, 2], [1, 1, 0]), ([1, 2, 0, 0], [0, 1, 1])):
        x = steps(most, most, [0, 1, 1, 0])
        parts = cut(x, spans_from_lengths("x", [2, 2, 3], x))
        assert [part.ravel().tolist() for part in parts] == [[1, 2], [1, 2], expected]


def test_lengths_of_few_bits_reach_over_long_arrays():
    x = np.zeros((1, 300, 1))
    x[0, 280:] = 1
    spans = spans_from_lengths("x", np.array([20], np.uint8), x)
    assert cut(x, spans)[0].tolist() == [[1.0]] * 20


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 4, 1], r"x\[1\] must be in \[0, 3\], got 4"),
        ([1, 1, -1], r"x\[2\] must be in \[0, 3\], got -1"),
        ([1, 1], r"x must be 3 whole numbers, got int64 of shape \(2,\)"),
        ([1.0, 1.0, 1.0], "x must be 3 whole numbers, got float64"),
        ([1, [2], 3], "x must have entries of one length, got list"),
        (
            [1, 2, 2],
            r"x\[2\] must not cut values off, got 2, and values from step 0 to 2; correct it, or "
            "pass masks to from_arrays",
        ),
    ],
)
def test_wrong_lengths(lengths, message):
    x = steps([1, 0, 0], [1, 2, 0], [1, 2, 3])
    with pytest.raises(ValueError, match=message):
        spans_from_lengths("x", lengths, x)


def test_wrong_lengths_of_a_left_padded_array_name_the_sample_that_is_wrong():
    x = steps([0, 0, 1], [0, 1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"x\[1\] must .* got 1, and values from step 1 to 2"):
        spans_from_lengths("x", [1, 1, 3], x)


# Masks and alignment


def test_masks():
    x = np.arange(9.0).reshape(3, 3, 1)
    for kind in (bool, int, float):
        mask = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], kind)
        spans = spans_from_mask("m", mask, x)
        assert cut(x, spans)[1].tolist() == [[4.0], [5.0]]
        assert (spans.stop - spans.start).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 0], [1, 0, 1]], r"m\[1\] must have no hole between real steps"),
        ([[0, 1, 0, 1, 0]], r"m\[0\] must have no hole between real steps"),
        ([[1, 0.5, 0]], r"m must be 0 and 1 of shape \(1, 3\), got float64 of shape \(1, 3\)"),
        ([[1, np.nan, 0]], "m must be 0 and 1"),
        ([[1, 2, 0]], "m must be 0 and 1"),
        ([["a", "b", "c"]], "m must be 0 and 1 .* got <U1"),
    ],
)
def test_wrong_masks(mask, message):
    x = np.ones((len(mask), len(mask[0]), 2))
    with pytest.raises(ValueError, match=message):
        spans_from_mask("m", mask, x)


def test_aligned_arrays_have_the_steps_of_the_words():
    words = Spans(np.array([0, 1, 0]), np.array([3, 3, 2]))
    x = steps([0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0])
    spans = spans_from_alignment(words, x)
    assert [len(part) for part in cut(x, spans)] == [3, 2, 0]
    for place in (0, 3):
        other = x.copy()
        other[1, place] = 1
        assert spans_from_alignment(words, other) is None


def test_masks_of_another_shape():
    with pytest.raises(
        ValueError, match=r"m must be 0 and 1 of shape \(2, 3\), got int64 of shape"
    ):
        spans_from_mask("m", [[1, 1, 0]], np.ones((2, 3, 2)))
