"""Synthetic data: the factors, noise and gaps are what was asked for."""

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, skew

from tdmer.data import make_synthetic

ONE_STEP = {"noise": 0.0, "steps": (1, 1)}


def steps_of(drawn, name):
    return torch.cat([drawn.dataset[i].inputs[name] for i in range(len(drawn.dataset))])


def r2(x, y):
    """Share of the variance of ``y`` that a linear map of ``x`` explains."""
    x = np.column_stack([x, np.ones(len(x))])
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - residual.var() / y.var()


def test_sequences_are_made_of_the_factors_alone():
    drawn = make_synthetic({"train": 200}, **ONE_STEP)["train"]
    for name, private in drawn.private.items():
        x = steps_of(drawn, name).numpy()
        both = torch.cat([drawn.shared, private], 1).numpy()
        # Up to the gain of the step, a sample is a linear map of its factors.
        mixing, *_ = np.linalg.lstsq(both, x, rcond=None)
        mapped = both @ mixing
        cosines = (mapped * x).sum(1) / np.linalg.norm(mapped, axis=1) / np.linalg.norm(x, axis=1)
        assert cosines.mean() > 0.98
        # The private factors of another modality explain nothing.
        other = next(p for n, p in drawn.private.items() if n != name).numpy()
        assert r2(other, x) < 0.1


def test_factors_are_standard_and_differ_in_shape_only():
    drawn = make_synthetic({"train": 20000}, factors=1, steps=(1, 1))["train"]
    for factor in (drawn.shared, *drawn.private.values()):
        assert factor.mean().item() == pytest.approx(0, abs=0.03)
        assert factor.std().item() == pytest.approx(1, abs=0.03)
    text, audio, video = (drawn.private[name].numpy().ravel() for name in drawn.private)
    assert kurtosis(text) == pytest.approx(-1.2, abs=0.1)  # uniform
    assert kurtosis(audio) < -1.7  # two peaks
    assert skew(video) == pytest.approx(2, abs=0.3)  # exponential
    assert kurtosis(drawn.shared.numpy().ravel()) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("source", ["shared", "text", "video"])
def test_the_label_is_made_of_the_signal(source):
    drawn = make_synthetic({"train": 400}, signal={source: 2.0}, steps=(1, 1))["train"]
    score = np.arctanh(drawn.dataset.labels.double().numpy() / 3)
    parts = {"shared": drawn.shared, **drawn.private}
    for name, factors in parts.items():
        explained = r2(factors.double().numpy(), score)
        assert explained > 0.999 if name == source else explained < 0.1
    assert score.std() == pytest.approx(1, abs=0.2)  # scaled, whatever the weight


def test_noise_is_per_modality():
    noise = {"text": 0.0, "audio": 1.0, "video": 3.0}
    drawn = make_synthetic({"train": 300}, noise=noise, steps=(1, 1))["train"]
    quiet = make_synthetic({"train": 300}, noise=0.0, steps=(1, 1))["train"]
    assert torch.equal(drawn.shared, quiet.shared)
    for name, expected in noise.items():
        difference = steps_of(drawn, name) - steps_of(quiet, name)
        assert difference.std().item() == pytest.approx(expected, rel=0.05, abs=1e-6)


def test_modalities_are_missing_at_their_rate_but_never_all():
    rates = {"text": 0.0, "audio": 0.3, "video": 0.9}
    lengths = make_synthetic({"train": 3000}, missing=rates)["train"].dataset.lengths
    for name, rate in rates.items():
        assert (lengths[name] == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
    lengths = make_synthetic({"train": 3000}, missing=0.9)["train"].dataset.lengths
    there = torch.stack(list(lengths.values())) > 0
    assert there.any(0).all()
    assert not there.all(0).all()


def test_lengths_are_in_range_and_splits_share_one_world():
    world = make_synthetic({"train": 300, "test": 100}, steps=(2, 5), noise=0.0, factors=1)
    lengths = torch.stack(list(world["train"].dataset.lengths.values()))
    assert set(lengths.unique().tolist()) == {2, 3, 4, 5}
    assert not torch.equal(world["train"].shared[:100], world["test"].shared)
    # What is learnt of the mixing on one split holds on the other.
    for name in world["train"].private:
        spans = []
        for drawn in world.values():
            _, _, directions = np.linalg.svd(steps_of(drawn, name).numpy(), full_matrices=False)
            spans.append(directions[:2])
        overlap = np.linalg.svd(spans[0] @ spans[1].T, compute_uv=False)
        np.testing.assert_allclose(overlap, 1, atol=1e-4)


def test_a_seed_repeats_and_another_differs():
    one, two, other = (make_synthetic({"a": 20}, seed=seed)["a"] for seed in (1, 1, 2))
    assert torch.equal(one.dataset.labels, two.dataset.labels)
    assert torch.equal(one.dataset[3].inputs["text"], two.dataset[3].inputs["text"])
    assert not torch.equal(one.dataset.labels, other.dataset.labels)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sizes": {"train": 0}}, ValueError, "train must be at least 1, got 0"),
        ({"signal": {"smell": 1.0}}, ValueError, "signal must give a weight other than 0"),
        ({"signal": {"text": 0.0}}, ValueError, "signal must give a weight other than 0"),
        ({"noise": -1.0}, ValueError, "noise of text must be in"),
        ({"missing": 1.0}, ValueError, "missing of text must be in"),
        ({"missing": {"text": 0.5}}, ValueError, "missing must have an entry for each of"),
        ({"steps": (5, 2)}, ValueError, "steps must be a least and a greatest number"),
        ({"steps": (0, 2)}, ValueError, "steps must be at least 1, got 0"),
        ({"factors": 1.5}, TypeError, "factors must be an int, got float"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make_synthetic(**{"sizes": {"train": 4}, **options})
