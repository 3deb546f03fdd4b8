"""Within each group every feature has mean 0 and spread 1, whatever the group added to it."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdmer.data import MultimodalDataset, from_arrays, normalize_by_group, open_store, write_store

SPEAKERS = np.array(["Ann", "Bob", "Ann", "Cleo", "Bob", "Cleo", "Ann"])


def dataset(seed=0, scale=1.0, shift=0.0):
    """Return seven ragged samples, of which each speaker has some steps in both modalities."""
    random = np.random.default_rng(seed)
    lengths = {"text": [3, 1, 5, 2, 2, 4, 0], "audio": [1, 0, 1, 1, 3, 1, 1]}
    inputs = {
        name: [shift + scale * random.normal(size=(t, 2)) for t in steps]
        for name, steps in lengths.items()
    }
    return MultimodalDataset(inputs, np.arange(7.0), [f"clip {number}" for number in range(7)])


def steps(data, modality):
    return [sample.inputs[modality].numpy() for sample in data]


def test_every_group_is_standardised_as_scikit_learn_does():
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="the comparison needs it")
    data = dataset(shift=300.0, scale=20.0)
    data[0].inputs["text"][1, 0] = float("nan")  # a view of the data
    found = normalize_by_group(data, SPEAKERS)
    for modality in data.dims:
        raw, new = steps(data, modality), steps(found, modality)
        assert [x.shape for x in new] == [x.shape for x in raw]
        for speaker in "Ann", "Bob", "Cleo":
            own = np.flatnonzero(speaker == SPEAKERS)
            before = np.concatenate([raw[number] for number in own]).astype(np.float64)
            after = np.concatenate([new[number] for number in own])
            wanted = preprocessing.StandardScaler().fit_transform(before)
            np.testing.assert_allclose(after, wanted, rtol=1e-5, atol=1e-6)
    assert np.isnan(steps(found, "text")[0][1, 0])


def test_all_else_stays():
    data = dataset()
    found = normalize_by_group(data, SPEAKERS)
    assert found.ids == data.ids
    assert found.labels.equal(data.labels)
    assert found.dims == data.dims
    for name, lengths in data.lengths.items():
        assert found.lengths[name].equal(lengths)
    # The data set that was given is not changed.
    for modality in data.dims:
        for x, y in zip(steps(data, modality), steps(dataset(), modality), strict=True):
            np.testing.assert_array_equal(x, y)


@given(
    st.integers(0, 9),
    st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    st.lists(st.floats(-100, 100), min_size=3, max_size=3),
)
def test_what_a_group_adds_and_multiplies_is_gone(seed, scales, shifts):
    data = dataset(seed)
    kinds, numbers = np.unique(SPEAKERS, return_inverse=True)
    assert len(kinds) == 3
    changed = {
        modality: [
            np.float64(scales[group]) * x + shifts[group]
            for x, group in zip(steps(data, modality), numbers, strict=True)
        ]
        for modality in data.dims
    }
    wanted = normalize_by_group(data, SPEAKERS)
    found = normalize_by_group(MultimodalDataset(changed, data.labels), numbers)
    # What float32 holds of a feature beside its shift.
    tolerance = 1e-5 + 1e-6 * max(map(abs, shifts)) / min(scales)
    for modality in data.dims:
        for x, y in zip(steps(found, modality), steps(wanted, modality), strict=True):
            np.testing.assert_allclose(x, y, atol=10 * tolerance)


def test_a_constant_feature_is_centred_and_keeps_its_scale():
    constant = [[0.1, 5.0], [0.1, 7.0], [0.1, 6.0], [3.0, 1e30], [5.0, float("inf")], [4.0, -1e30]]
    data = from_arrays({"voice": constant, "face": np.ones((6, 1))}, np.zeros(6))
    found = normalize_by_group(data, [1, 1, 1, 2, 2, 2])
    voice, face = np.concatenate(steps(found, "voice")), np.concatenate(steps(found, "face"))
    spread = 1.5**0.5
    np.testing.assert_allclose(voice[:, 0], [0, 0, 0, -spread, spread, 0], atol=1e-6)
    np.testing.assert_allclose(voice[:, 1], [-spread, spread, 0, 1, np.inf, -1], atol=1e-6)
    assert not face.any()


def test_a_subset_a_store_and_a_copy_give_the_same(tmp_path):
    found = normalize_by_group(dataset(), SPEAKERS)
    write_store(tmp_path / "raw", {"all": dataset()})
    read = normalize_by_group(open_store(tmp_path / "raw")["all"], SPEAKERS)
    write_store(tmp_path / "normalized", {"all": found})
    order = [5, 2, 0, 6, 1, 3, 4]
    dealt = normalize_by_group(dataset().subset(order), SPEAKERS[order])
    same = {
        "store": read,
        "written": open_store(tmp_path / "normalized")["all"],
        "copy": pickle.loads(pickle.dumps(found)),
        "subset": dealt.subset(np.argsort(order)),
    }
    for name, data in same.items():
        for modality in data.dims:
            for x, y in zip(steps(data, modality), steps(found, modality), strict=True):
                np.testing.assert_allclose(x, y, atol=1e-6, err_msg=name)
    assert found.subset([4])[0].inputs["audio"].equal(found[4].inputs["audio"])


def test_modalities_that_are_not_named_stay():
    data = dataset()
    found = normalize_by_group(data, SPEAKERS, modalities=["audio"])
    whole = normalize_by_group(data, SPEAKERS)
    for x, raw, wanted in zip(found, data, whole, strict=True):
        assert x.inputs["text"].equal(raw.inputs["text"])
        assert x.inputs["audio"].equal(wanted.inputs["audio"])
    # Of a single step of audio nothing would remain.
    alone = normalize_by_group(data, [0, 0, 0, 3, 0, 0, 0], modalities=["text"])
    assert alone[3].inputs["audio"].equal(data[3].inputs["audio"])
    with pytest.raises(ValueError, match=r"modalities must be one of .*'text'.*, got 'video'"):
        normalize_by_group(data, SPEAKERS, modalities=["audio", "video"])
    with pytest.raises(TypeError, match="got the string 'audio'"):
        normalize_by_group(data, SPEAKERS, modalities="audio")


def test_groups_of_which_nothing_would_remain_are_refused():
    data = dataset()
    with pytest.raises(ValueError, match=r"one of 'audio' in group '2': join it with another"):
        normalize_by_group(data, [0, 0, 0, 2, 0, 0, 0])
    with pytest.raises(ValueError, match="one per sample, 7, got 2"):
        normalize_by_group(data, ["Ann", "Bob"])
    with pytest.raises(ValueError, match=r"groups\[0\] must be a str, bytes or int, got Tensor"):
        normalize_by_group(data, torch.zeros(7))
    # Without a single step there is nothing to normalise: sample 1 alone lacks audio.
    alone = MultimodalDataset({"text": [np.ones((2, 1))] * 2, "audio": np.ones((2, 0, 1))}, [0, 1])
    assert normalize_by_group(alone, ["a", "b"])[1].inputs["audio"].shape == (0, 1)
