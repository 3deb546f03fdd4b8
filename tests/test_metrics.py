"""Metrics against scikit-learn and SciPy, their definitions, what is undefined, intervals."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from tdmer.metrics import (
    bootstrap_interval,
    classification_metrics,
    multilabel_metrics,
    sentiment_metrics,
)

from .strategies import thorough

KEYS = ["mae", "corr", "acc7", "acc5", "acc2_non0", "f1_non0", "acc2_has0", "f1_has0"]
SCORES = st.integers(-35, 35).map(lambda tenths: tenths / 10)
PAIRS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[hnp.arrays(np.float64, n, elements=SCORES)] * 2)
)


def of(pred, true):
    return sentiment_metrics(np.array(pred, float), np.array(true, float))


# Sentiment: oracles


@thorough
@given(PAIRS)
def test_equals_scikit_learn_and_scipy(pair):
    pred, true = pair
    got = sentiment_metrics(pred, true)
    assert list(got) == KEYS
    assert all(type(value) is float for value in got.values())
    non0 = true != 0
    for convention, p, t in [
        ("non0", pred[non0] > 0, true[non0] > 0),
        ("has0", pred >= 0, true >= 0),
    ]:
        if len(t):
            assert got[f"acc2_{convention}"] == pytest.approx(accuracy_score(t, p))
            assert got[f"f1_{convention}"] == pytest.approx(
                f1_score(t, p, average="weighted", zero_division=0)
            )
    assert got["mae"] == pytest.approx(sum(abs(p - t) for p, t in zip(*pair, strict=True)) / len(t))


@thorough
@given(PAIRS)
def test_correlation_equals_scipy(pair):
    pred, true = pair
    assume(np.ptp(pred) > 0 and np.ptp(true) > 0)
    got = sentiment_metrics(pred, true)["corr"]
    assert got == pytest.approx(stats.pearsonr(pred, true).statistic, abs=1e-12)
    assert -1 <= got <= 1


def test_correlation_does_not_round_beyond_1():
    for seed in range(50):
        x = np.random.default_rng(seed).normal(size=9)
        assert sentiment_metrics(x, 3 * x)["corr"] <= 1
        assert sentiment_metrics(x, -3 * x)["corr"] >= -1


def test_f1_takes_the_labels_as_its_weights():
    pred = np.r_[np.full(9, 1.0), -1.0]
    true = np.r_[np.full(5, 1.0), np.full(4, -1.0), -1.0]
    # positive: tp 5, predicted 9, labelled 5; negative: tp 1, predicted 1, labelled 5.
    right = 0.5 * (10 / 14) + 0.5 * (2 / 6)
    swapped = 0.9 * (10 / 14) + 0.1 * (2 / 6)
    assert abs(right - swapped) > 0.1
    assert of(pred, true)["f1_non0"] == pytest.approx(right)
    assert of(pred, true)["f1_has0"] == pytest.approx(right)


# Sentiment: exact cases of the definitions


@pytest.mark.parametrize(
    ("pred", "true", "acc7", "acc5"),
    [
        (0.5, 0.0, 1.0, 1.0),  # half to even: 0.5 → 0
        (0.5, 1.0, 0.0, 0.0),
        (1.5, 2.0, 1.0, 1.0),  # 1.5 → 2
        (2.5, 2.0, 1.0, 1.0),  # 2.5 → 2, not 3
        (2.5, 3.0, 0.0, 1.0),
        (-1.5, -2.0, 1.0, 1.0),
        (-0.5, -0.4, 1.0, 1.0),  # -0 equals 0
        (9.0, 3.0, 1.0, 1.0),  # clipped
        (-9.0, -2.6, 1.0, 1.0),
        (3.0, 2.0, 0.0, 1.0),
        (2.0, 9.0, 0.0, 1.0),  # labels are clipped as well
        (3.0, 9.0, 1.0, 1.0),
    ],
)
def test_classes_after_clipping_and_rounding(pred, true, acc7, acc5):
    got = of([pred], [true])
    assert (got["acc7"], got["acc5"]) == (acc7, acc5)


def test_a_prediction_of_0_is_negative_in_non0_and_not_negative_in_has0():
    assert of([0.0], [-1.0])["acc2_non0"] == 1.0
    assert of([0.0], [-1.0])["acc2_has0"] == 0.0
    assert of([0.0], [1.0])["acc2_non0"] == 0.0
    assert of([0.0], [1.0])["acc2_has0"] == 1.0


def test_a_label_of_0_is_dropped_in_non0_and_not_negative_in_has0():
    got = of([-1.0, 2.0], [0.0, 2.0])
    assert (got["acc2_non0"], got["f1_non0"]) == (1.0, 1.0)
    assert got["acc2_has0"] == 0.5
    assert got["f1_has0"] == pytest.approx(2 / 3)


# Sentiment: what is undefined


def test_no_samples_are_all_nan():
    assert all(np.isnan(value) for value in of([], []).values())


def test_labels_of_0_only():
    got = of([0.5, -0.5], [0.0, 0.0])
    undefined = {name for name, value in got.items() if np.isnan(value)}
    assert undefined == {"corr", "acc2_non0", "f1_non0"}


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.7, 1e300])
def test_a_constant_side_has_no_correlation(constant):
    varied = np.arange(7.0) - 3
    assert np.isnan(sentiment_metrics(np.full(7, constant), varied)["corr"])
    assert np.isnan(sentiment_metrics(varied, np.full(7, constant))["corr"])


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_correlation_is_free_of_scale(scale):
    varied = np.array([1.0, -2.0, 0.5, 3.0])
    other = np.array([0.5, -1.0, 2.0, 1.0])
    expected = stats.pearsonr(varied, other).statistic
    assert sentiment_metrics(varied * scale, other)["corr"] == pytest.approx(expected)


def test_missing_labels_are_left_out_with_their_predictions():
    pred, true = [1.0, np.nan, 0.3, -2.0], [1.5, np.nan, np.nan, 0.5]
    assert of(pred, true) == of([1.0, -2.0], [1.5, 0.5])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_an_error(bad):
    with pytest.raises(ValueError, match=r"pred must be finite where a label is known, got 1 NaN"):
        of([0.0, bad], [1.0, 2.0])


def test_infinite_labels_are_an_error():
    with pytest.raises(ValueError, match=r"true must be finite"):
        of([0.0, 1.0], [1.0, np.inf])


# Sentiment: kinds of input


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_any_dtype_equal_arrays(dtype):
    pred = torch.tensor([1.5, -0.25, 2.5, 0.0], dtype=dtype, requires_grad=True)
    true = torch.tensor([1.0, -0.5, 3.0, -1.0], dtype=dtype)
    expected = of([1.5, -0.25, 2.5, 0.0], [1.0, -0.5, 3.0, -1.0])
    assert sentiment_metrics(pred, true) == expected
    assert sentiment_metrics(pred, true.double().numpy()) == expected


def test_the_sums_are_float64():
    pred, true = np.full(100_000, 0.1, np.float16), np.zeros(100_000, np.float16)
    assert sentiment_metrics(pred, true)["mae"] == pytest.approx(float(np.float16(0.1)), rel=1e-12)


def test_inputs_are_not_changed():
    pred, true = np.array([5.0, -5.0]), np.array([1.0, np.nan])
    sentiment_metrics(pred, true)
    np.testing.assert_array_equal(pred, [5.0, -5.0])
    np.testing.assert_array_equal(true, [1.0, np.nan])


@pytest.mark.parametrize(
    ("pred", "true"),
    [((3,), (2,)), ((3, 1), (3, 1)), ((), ()), ((3,), (3, 1))],
)
@pytest.mark.parametrize("metrics", [sentiment_metrics, classification_metrics])
@pytest.mark.usefixtures("unchecked")
def test_shapes_must_agree(metrics, pred, true):
    with pytest.raises(ValueError, match=r"pred and true must have one shape \(n,\), got"):
        metrics(np.zeros(pred), np.zeros(true))


# Bootstrap


def noisy(n=200, seed=0):
    random = np.random.default_rng(seed)
    true = random.uniform(-3, 3, n)
    return true + random.normal(size=n), true


def test_interval_of_the_mean_agrees_with_the_normal_approximation():
    pred, true = noisy(2000)
    errors = np.abs(pred - true)
    half = 1.96 * errors.std(ddof=1) / np.sqrt(len(errors))
    low, high = bootstrap_interval(pred, true, samples=2000)
    assert low == pytest.approx(errors.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(errors.mean() + half, abs=0.15 * half)


def test_interval_follows_its_options():
    pred, true = noisy()
    low, high = bootstrap_interval(pred, true, metric="f1_has0", samples=200)
    assert low < sentiment_metrics(pred, true)["f1_has0"] < high
    narrow = bootstrap_interval(pred, true, metric="f1_has0", samples=200, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    middle = bootstrap_interval(pred, true, metric="f1_has0", samples=200, level=0.0)
    assert middle[0] == middle[1]
    assert bootstrap_interval(pred, true, metric="f1_has0", samples=200) == (low, high)
    assert bootstrap_interval(pred, true, metric="f1_has0", samples=200, seed=1) != (low, high)
    assert bootstrap_interval(pred, true, metric="f1_has0", samples=20) != (low, high)


def test_a_draw_has_as_many_samples_as_there_are():
    # Two errors, 0 and 3: half of the draws of two hold both, and their mean is the median.
    pred, true = np.array([0.0, 3.0]), np.zeros(2)
    assert bootstrap_interval(pred, true, samples=1001, level=0.0) == (1.5, 1.5)


def test_interval_leaves_undefined_draws_out():
    pred, true = np.array([1.0, -1.0]), np.array([1.0, 0.0])
    # A draw of the second sample only has no accuracy without zeros.
    assert bootstrap_interval(pred, true, metric="acc2_non0", samples=50) == (1.0, 1.0)
    assert np.isnan(bootstrap_interval(pred[1:], true[1:], metric="acc2_non0", samples=5)).all()
    assert np.isnan(bootstrap_interval(pred[:0], true[:0], samples=5)).all()


def test_interval_draws_among_labelled_samples_only():
    pred, true = noisy(50)
    more = np.r_[true, np.full(50, np.nan)]
    assert bootstrap_interval(np.r_[pred, pred], more, samples=50) == bootstrap_interval(
        pred, true, samples=50
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"metric": "acc3"}, r"metric must be one of .*'mae'.* got 'acc3'"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"level": 1.0}, r"level must be in \[0.0, 1.0\), got 1.0"),
        ({"level": -0.1}, r"level must be in \[0.0, 1.0\), got -0.1"),
    ],
)
def test_interval_options_are_checked(option, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(*noisy(5), **option)


# Classes


@thorough
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(*[hnp.arrays(np.int64, n, elements=st.integers(0, 4))] * 2)
    )
)
def test_classes_equal_scikit_learn(pair):
    pred, true = pair
    got = classification_metrics(torch.from_numpy(pred), torch.from_numpy(true))
    assert list(got) == ["accuracy", "f1_weighted", "f1_macro"]
    assert got["accuracy"] == pytest.approx(accuracy_score(true, pred))
    for kind in ("weighted", "macro"):
        expected = f1_score(true, pred, average=kind, zero_division=0)
        assert got[f"f1_{kind}"] == pytest.approx(expected)


def test_missing_classes_are_left_out():
    pred, true = np.array([0, 1, 1, 2]), np.array([0, 1, 0, -100])
    assert classification_metrics(pred, true) == classification_metrics(pred[:3], true[:3])
    assert all(np.isnan(x) for x in classification_metrics(pred[3:], true[3:]).values())


def test_classes_must_be_whole_numbers():
    with pytest.raises(ValueError, match=r"pred must hold classes, got 0\.5"):
        classification_metrics(np.array([0.5, 1.0]), np.array([0, 1]))


# Several labels per sample


@thorough
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.int64, shape, elements=st.integers(0, 1))] * 2)
    )
)
def test_labels_equal_scikit_learn(pair):
    pred, true = pair
    got = multilabel_metrics(pred, torch.from_numpy(true).float())
    assert list(got) == ["accuracy", "exact", "f1_micro", "f1_macro", "f1_weighted"]
    assert got["accuracy"] == pytest.approx(accuracy_score(true.ravel(), pred.ravel()))
    assert got["exact"] == pytest.approx((pred == true).all(1).mean())
    used = (pred | true).any(0)
    if true.any():
        # One column would be taken for two classes.
        columns = [f1_score(t, p, zero_division=0) for t, p in zip(true.T, pred.T, strict=True)]
        assert got["f1_macro"] == pytest.approx(np.array(columns)[used].mean())
        assert got["f1_weighted"] == pytest.approx(np.average(columns, weights=true.sum(0)))
        assert got["f1_micro"] == pytest.approx(
            f1_score(true.ravel(), pred.ravel(), zero_division=0)
        )


def test_undefined_labels():
    none = np.zeros((2, 3), int)
    got = multilabel_metrics(none, none)
    assert (got["accuracy"], got["exact"]) == (1.0, 1.0)
    assert all(np.isnan(got[name]) for name in ("f1_micro", "f1_macro", "f1_weighted"))
    only_predicted = multilabel_metrics(none + 1, none)
    assert (only_predicted["f1_micro"], only_predicted["f1_macro"]) == (0.0, 0.0)
    assert np.isnan(only_predicted["f1_weighted"])


def test_samples_with_a_missing_label_are_left_out():
    pred, true = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [0.0, np.nan]])
    assert multilabel_metrics(pred, true) == multilabel_metrics(pred[:1], true[:1])


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"pred must hold only 0 and 1, got 0\.3"):
        multilabel_metrics(np.array([[0.3]]), np.array([[1.0]]))
    with pytest.raises(ValueError, match=r"true must hold only 0 and 1, got 2\.0"):
        multilabel_metrics(np.array([[1.0]]), np.array([[2.0]]))


@pytest.mark.usefixtures("unchecked")
def test_label_shapes_must_agree():
    with pytest.raises(ValueError, match=r"pred and true must have one shape \(n, k\), got"):
        multilabel_metrics(np.zeros((2, 3)), np.zeros((2, 2)))
