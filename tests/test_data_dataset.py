import io
import pickle
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tdmer import TDMER, Sentiment, TDMERLoss
from tdmer.data import (
    Batch,
    MultimodalDataset,
    Sample,
    collate,
    describe,
    from_arrays,
    open_store,
    write_store,
)

LENGTHS = {"text": [3, 1, 5], "audio": [2, 0, 1]}
WIDTHS = {"text": 4, "audio": 2}


def sequences(lengths=LENGTHS, widths=WIDTHS, dtype=np.float32):
    random = np.random.default_rng(0)
    return {
        name: [random.normal(size=(t, widths[name])).astype(dtype) for t in steps]
        for name, steps in lengths.items()
    }


def dataset():
    return MultimodalDataset(sequences(), [0.5, -1.0, 3.0], ["one", "two", "three"])


# Data set


def test_samples_come_back_as_they_were():
    inputs, data = sequences(), dataset()
    assert len(data) == 3
    assert data.dims == WIDTHS
    assert data.ids == ["one", "two", "three"]
    assert {name: steps.tolist() for name, steps in data.lengths.items()} == LENGTHS
    for index in range(3):
        sample = data[index]
        assert isinstance(sample, Sample)
        assert list(sample.inputs) == ["text", "audio"]
        for name, array in inputs.items():
            assert sample.inputs[name].dtype == torch.float32
            np.testing.assert_array_equal(sample.inputs[name].numpy(), array[index])
        assert sample.label == data.labels[index]
        assert sample.id == data.ids[index]
    assert data.labels.tolist() == [0.5, -1.0, 3.0]


def test_iteration_ends_and_negative_indices_count_from_the_end():
    data = dataset()
    assert [data[index].id for index in range(-3, 3)] == data.ids * 2
    for index in (3, -4):
        with pytest.raises(IndexError, match=rf"index must be in \[-3, 3\), got {index}"):
            data[index]
    assert [sample.id for sample in data] == data.ids


@pytest.mark.parametrize("index", [np.int64(-1), torch.tensor(2), np.array(2, np.uint8)])
def test_any_whole_number_is_an_index(index):
    assert dataset()[index].id == "three"


@pytest.mark.parametrize(
    "index", [[0, 1], (0, 1), "one", None, 1.0, torch.tensor([0, 1]), np.ones(3) > 0]
)
@pytest.mark.usefixtures("unchecked")
def test_other_indices_name_what_takes_them(index):
    with pytest.raises(
        TypeError, match=r"index must be .* or a slice \(subset takes several\), got "
    ):
        dataset()[index]


# Subsets


@pytest.mark.parametrize("kind", ["memory", "store", "subset"])
@pytest.mark.parametrize(
    ("indices", "numbers"),
    [
        ([2, 0], [2, 0]),
        (range(1, 3), [1, 2]),
        ((-1, -1, 0), [2, 2, 0]),
        (np.array([1], np.uint8), [1]),
        (torch.tensor([0, -2]), [0, 1]),
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -2), [2, 0]),
    ],
)
def test_a_subset_has_the_samples_of_its_indices(tmp_path, kind, indices, numbers):
    data = whole = dataset()
    if kind == "store":
        write_store(tmp_path / "store", {"all": whole})
        data = open_store(tmp_path / "store")["all"]
    elif kind == "subset":
        data = whole.subset([1, 0, 2]).subset([1, 0, 2])
    part = data[indices] if isinstance(indices, slice) else data.subset(indices)
    assert part.dims == whole.dims
    assert part.ids == [whole.ids[n] for n in numbers]
    assert part.labels.tolist() == whole.labels[numbers].tolist()
    for sample, number in zip(part, numbers, strict=True):
        torch.testing.assert_close(sample[:2], whole[number][:2])
        assert {name: len(x) for name, x in sample.inputs.items()} == {
            name: steps[number] for name, steps in LENGTHS.items()
        }
    for name, steps in part.lengths.items():
        assert steps.tolist() == [LENGTHS[name][n] for n in numbers]
    write_store(tmp_path / "part", {"part": part})
    stored = open_store(tmp_path / "part")["part"]
    assert describe({"part": stored}) == describe({"part": part})
    torch.testing.assert_close(collate(list(stored))[:3], collate(list(part))[:3])


def test_a_subset_holds_no_copy():
    whole = dataset()
    part = whole.subset([2])
    assert part[0].inputs["text"].data_ptr() == whole[2].inputs["text"].data_ptr()
    part.labels[0] = 7.0
    assert whole.labels.tolist() == [0.5, -1.0, 3.0]


def test_a_subset_tells_no_overflow_that_it_does_not_know():
    x = np.array([[[1e39, 1.0]], [[np.inf, 2.0]]])
    whole = MultimodalDataset({"a": x, "b": np.ones((2, 1, 1))}, [0.0, 1.0])
    assert whole.overflows == {"a": 1, "b": 0}
    part = whole[1:]
    assert part.overflows == {"b": 0}
    assert describe({"part": part}).splitlines()[1].endswith("(min/median/max), 1 infinite")


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([], ValueError, r"one or more whole numbers, or 3 bools, got float64 of shape \(0,\)"),
        (slice(3, 3), ValueError, "indices must be one or more whole numbers, or 3 bools, got"),
        ([0.0, 1.0], ValueError, "indices must be one or more whole .* got float64"),
        ([True, False], ValueError, r"or 3 bools, got bool of shape \(2,\)"),
        ([[0, 1]], ValueError, r"got int64 of shape \(1, 2\)"),
        (1, ValueError, r"got int64 of shape \(\)"),
        ("one", ValueError, "got <U3"),
        ([0, 3], IndexError, r"indices must be in \[-3, 3\), got 3"),
        ([-4], IndexError, r"indices must be in \[-3, 3\), got -4"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_indices_of_a_subset(indices, error, message):
    with pytest.raises(error, match=message):
        dataset()[indices] if isinstance(indices, slice) else dataset().subset(indices)


def test_a_data_set_shows_what_it_holds():
    shown = "MultimodalDataset({} samples, dims={{'text': 4, 'audio': 2}}, labels=float32 of shape"
    assert repr(dataset()) == shown.format(3) + " (3,))"
    assert repr(dataset()[:2]) == shown.format(2) + " (2,))"


def test_ids_are_running_numbers_by_default():
    data = MultimodalDataset(sequences(), [0, 1, 2], np.array(["a", "b", "c"]))
    assert [type(name) for name in data.ids] == [str] * 3
    assert MultimodalDataset(sequences(), [0, 1, 2]).ids == ["0", "1", "2"]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i2"])
def test_features_become_float32(dtype):
    x = np.array([[0.5, -2.0]], dtype)
    got = MultimodalDataset({"a": [x]}, [1.0])[0].inputs["a"]
    assert got.dtype == torch.float32
    assert got.tolist() == x.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_taken(dtype):
    x = torch.tensor([[[0.5, -2.0], [1.0, 4.0]]], dtype=dtype, requires_grad=True)
    got = MultimodalDataset({"a": x}, torch.tensor([1.0]))[0].inputs["a"]
    assert got.tolist() == [[0.5, -2.0], [1.0, 4.0]]
    assert got.dtype == torch.float32


def test_what_is_not_finite_stays_and_overflow_becomes_inf_without_a_warning():
    x = np.array([[np.nan, np.inf, -np.inf, 1e300, -1e300]])
    got = MultimodalDataset({"a": [x]}, [1.0])[0].inputs["a"][0]
    assert got[0].isnan()
    assert got[1:].tolist() == [np.inf, -np.inf, np.inf, -np.inf]


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([0.5, 1.0, np.nan], torch.float32),
        (np.array([1.0, 2.0, 3.0], ">f8"), torch.float32),
        ([0, 1, -100], torch.int64),
        (np.array([0, 1, 2], np.uint8), torch.int64),
        (torch.tensor([0.0, 1.0, 2.0], dtype=torch.bfloat16), torch.float32),
        (torch.tensor([0, 1, 2], dtype=torch.int32), torch.int64),
        ([[0, 1], [1, 1], [0, 0]], torch.int64),
        (np.array([0, 1, 2], ">i4"), torch.int64),
    ],
)
def test_label_dtypes(labels, dtype):
    data = MultimodalDataset(sequences(), labels)
    assert data.labels.dtype == dtype
    assert data.labels.shape == np.shape(labels)


def test_nothing_is_shared_with_the_arguments():
    inputs, labels = sequences(), torch.tensor([0.0, 1.0, 2.0])
    before = inputs["text"][0].copy()
    data = MultimodalDataset(inputs, labels)
    inputs["text"][0][:] = 7
    labels[:] = 7
    np.testing.assert_array_equal(data[0].inputs["text"], before)
    assert data.labels.tolist() == [0.0, 1.0, 2.0]


def test_storage_holds_no_pads():
    # One long sequence among many short ones: padded, this would be 8 MB.
    long = [np.zeros((1000 if i == 0 else 1, 2), np.float32) for i in range(1000)]
    content = pickle.dumps(MultimodalDataset({"a": long}, np.zeros(1000)))
    assert len(content) < 2 * 4 * 2 * 2000 + 40_000


def test_workers_see_the_same_data():
    data = dataset()
    for workers in (0, 1):
        loader = DataLoader(data, batch_size=2, collate_fn=collate, num_workers=workers)
        batches = list(loader)
        assert [batch.ids for batch in batches] == [["one", "two"], ["three"]]
        assert all(isinstance(batch, Batch) for batch in batches)
        torch.testing.assert_close(batches[1].inputs["text"][0], data[2].inputs["text"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": {}}, ValueError, "inputs must hold at least one modality, got none"),
        ({"labels": []}, ValueError, r"labels must be numbers of .*got float64 of shape \(0,\)"),
        (
            {"labels": np.float64(1.0)},
            ValueError,
            r"labels must be numbers of .*got float64 of shape \(\)",
        ),
        (
            {"labels": np.zeros((3, 1, 1))},
            ValueError,
            r"labels must be numbers of .*got float64 of shape \(3, 1, 1\)",
        ),
        ({"labels": np.array(["a", "b", "c"])}, ValueError, "labels must be numbers .* got <U1"),
        ({"labels": [True, False, True]}, ValueError, "labels must be numbers .* got bool"),
        ({"labels": torch.ones(3) > 0}, ValueError, "labels must be numbers .* got bool"),
        ({"labels": [0.0, -np.inf, 1.0]}, ValueError, "labels must be finite .* in sample 1"),
        ({"labels": [0.0, 1.0, 1e300]}, ValueError, "labels must be finite .* in sample 2"),
        ({"labels": [1.0, 2.0]}, ValueError, r"inputs\['text'\] must hold one .* 2, got 3"),
        ({"ids": ["a", "b"]}, ValueError, "ids must be one per label, 3, got 2"),
        ({"ids": ["a", 1.5, "c"]}, ValueError, r"ids\[1\] must be a str, bytes or int, got float"),
        ({"ids": "abc"}, ValueError, "ids must be a list or array of names, got str"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(change, error, message):
    arguments = {"inputs": sequences(), "labels": [0.0, 1.0, 2.0]} | change
    with pytest.raises(error, match=message):
        MultimodalDataset(**arguments)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 3)), "must have 4 features, as the first has, got 3"),
        (np.zeros(4), r"must be numbers of shape \(t, f\), .* got float64 of shape \(4,\)"),
        (np.zeros((2, 0)), r"must be .* f at least 1, got float64 of shape \(2, 0\)"),
        (np.zeros((2, 4), complex), "must be numbers .* got complex128"),
        (torch.zeros(2, 4) > 0, "must be numbers .* got bool"),
        (np.array([["a"] * 4]), "must be numbers .* got <U1"),
        ([[1.0, 2.0], [3.0]], "must have entries of one length, got list"),
        (None, r"must be numbers .* got object of shape \(\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_sequences_are_named(bad, message):
    inputs = sequences()
    inputs["text"][1] = bad
    with pytest.raises(ValueError, match=r"inputs\['text'\], sample 1 \('b'\), " + message):
        MultimodalDataset(inputs, [0.0, 1.0, 2.0], list("abc"))


def test_sequences_without_features_or_samples():
    with pytest.raises(ValueError, match=r"inputs\['a'\], sample 0 \('0'\), .* f at least 1"):
        MultimodalDataset({"a": [np.zeros((2, 0))]}, [0.0])
    with pytest.raises(
        ValueError, match=r"inputs\['a'\] must hold one sequence per label, 1, got 0"
    ):
        MultimodalDataset({"a": []}, [0.0])


# Collate


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=5))
def test_collate_pads_to_the_longest_of_the_batch(steps):
    lengths = {"text": [t for t, _ in steps], "audio": [t for _, t in steps]}
    inputs = sequences(lengths)
    batch = collate(list(MultimodalDataset(inputs, np.arange(len(steps)) / 2)))
    for name, arrays in inputs.items():
        longest = max(1, *lengths[name])
        assert batch.inputs[name].shape == (len(steps), longest, WIDTHS[name])
        assert batch.masks[name].dtype == torch.bool
        for row, array in enumerate(arrays):
            padded = np.zeros((longest, WIDTHS[name]), np.float32)
            padded[: len(array)] = array
            np.testing.assert_array_equal(batch.inputs[name][row], padded)
            mask = [place < len(array) for place in range(longest)]
            assert batch.masks[name][row].tolist() == mask
    assert batch.labels.tolist() == [row / 2 for row in range(len(steps))]
    assert batch.ids == [str(row) for row in range(len(steps))]


def test_collate_keeps_dtype_and_label_shape():
    sample = Sample({"a": torch.ones(2, 3, dtype=torch.float16)}, torch.tensor([0, 1]), "x")
    batch = collate([sample, sample])
    assert batch.inputs["a"].dtype == torch.float16
    assert batch.labels.tolist() == [[0, 1], [0, 1]]


def test_collate_does_not_hand_out_the_storage():
    data = dataset()
    batch = collate([data[0]])
    before = data[0].inputs["text"].clone()
    batch.inputs["text"].zero_()
    torch.testing.assert_close(data[0].inputs["text"], before)


def test_collate_refuses_what_it_cannot_stack():
    one = Sample({"a": torch.ones(1, 1)}, torch.tensor(0.0), "one")
    two = Sample({"b": torch.ones(1, 1)}, torch.tensor(0.0), "two")
    with pytest.raises(ValueError, match="samples must hold at least one sample, got none"):
        collate([])
    message = r"samples must all have the modalities \['a'\], got \['b'\] in sample 'two'"
    with pytest.raises(ValueError, match=message):
        collate([one, two])


def test_order_of_modalities_is_that_of_the_first_sample():
    one = Sample({"a": torch.zeros(1, 1), "b": torch.ones(1, 1)}, torch.tensor(0.0), "one")
    two = Sample({"b": torch.ones(1, 1), "a": torch.zeros(1, 1)}, torch.tensor(0.0), "two")
    batch = collate([one, two])
    assert list(batch.inputs) == list(batch.masks) == ["a", "b"]
    assert batch.inputs["b"].tolist() == [[[1.0]], [[1.0]]]


# What a model makes of damage


def test_samples_need_no_label():
    samples = [Sample({"a": ONE}), Sample({"a": torch.ones(2, 1)}, id="two")]
    batch = collate(samples)
    assert batch.labels.isnan().tolist() == [True, True]
    assert batch.ids == ["", "two"]


def test_damaged_entries_count_as_the_mean_and_a_sample_of_nothing_is_predicted():
    whole = sequences()
    whole["text"] = [np.full((3, 4), 2.0), np.arange(4.0)[None], np.zeros((0, 4))]
    whole["audio"][2] = whole["audio"][2][:0]
    damaged = whole | {"text": [x.copy() for x in whole["text"]]}
    damaged["text"][0][1] = np.nan, np.inf, -np.inf, 1e300
    labels = [0.5, -1.0, 3.0]
    model = TDMER(WIDTHS, num_classes=7, width=8, heads=2).eval()
    for fitted in (False, True):
        batch = collate(list(MultimodalDataset(damaged, labels)))
        if fitted:
            assert model.fit_normalization([batch]) == {"text": 4, "audio": 0}
        whole["text"][0][1] = model.normalizations["text"].mean
        expected = collate(list(MultimodalDataset(whole, labels)))
        output = model(batch.inputs, batch.masks)
        assert output.logits.isfinite().all()
        torch.testing.assert_close(output.logits, model(expected.inputs, expected.masks).logits)
        total = TDMERLoss(Sentiment())(output, batch.labels).total
        total.backward()
        assert total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# Modality dropout


def dropped(inputs, rate, count=2000, seed=0):
    """Return, per sample and modality, whether it was dropped from one sample, many times."""
    sample = Sample(inputs, torch.tensor(0.0), "x")
    torch.manual_seed(seed)
    batch = collate([sample] * count, modality_dropout=rate)
    for name, mask in batch.masks.items():
        assert torch.equal(mask.any(1), mask.all(1)), "dropped as a whole or not at all"
        assert not batch.inputs[name][~mask].any(), "pads are zero"
        assert (batch.inputs[name][mask] == 1).all()
    return torch.stack([~mask.any(1) for mask in batch.masks.values()], dim=1)


ONE, NONE = torch.ones(2, 3), torch.ones(0, 3)


def test_modalities_are_dropped_independently_with_their_probability():
    rates = {"a": 0.1, "b": 0.0, "c": 0.4}
    drops = dropped({"c": ONE, "a": ONE, "b": ONE}, rates)
    assert not drops[:, 2].any()
    # Four standard deviations of a share among 2000.
    assert drops[:, 0].float().mean() == pytest.approx(0.4, abs=0.045)
    assert drops[:, 1].float().mean() == pytest.approx(0.1, abs=0.027)
    assert (drops[:, 0] & drops[:, 1]).float().mean() == pytest.approx(0.04, abs=0.018)


@pytest.mark.parametrize("rate", [0.9, {"a": 0.999, "b": 0.6, "c": 0.99}])
def test_one_modality_always_stays(rate):
    drops = dropped({"a": ONE, "b": ONE, "c": ONE}, rate)
    assert not drops.all(1).any()
    if isinstance(rate, dict):
        # Where all would go, each is as likely to stay: a with 0.001 + 0.999 · 0.6 · 0.99 / 3.
        kept = 1 - drops.float().mean(0)
        others = 0.999 * 0.6 * 0.99 / 3
        assert kept.tolist() == pytest.approx(
            [0.001 + others, 0.4 + others, 0.01 + others], abs=0.045
        )


def test_a_modality_that_a_sample_lacks_does_not_count_as_one_that_stays():
    drops = dropped({"a": ONE, "b": NONE, "c": ONE}, {"a": 0.9, "b": 0.0, "c": 0.9})
    assert drops[:, 1].all()
    assert not (drops[:, 0] & drops[:, 2]).any()
    assert not dropped({"a": ONE, "b": NONE}, 0.9)[:, 0].any()
    assert dropped({"a": NONE, "b": NONE}, 0.9).all()


def test_samples_of_a_batch_are_dropped_from_independently():
    samples = [Sample({"a": ONE, "b": ONE}, torch.tensor(0.0), str(n)) for n in range(50)]
    torch.manual_seed(0)
    patterns = {
        tuple(tuple(mask.any(1).tolist()) for mask in batch.masks.values())
        for batch in (collate(samples, modality_dropout=0.5) for _ in range(3))
    }
    assert len(patterns) == 3
    assert all(0 < sum(kept) < 50 for pattern in patterns for kept in pattern)


def test_dropped_sequences_leave_no_pads():
    long = Sample({"a": torch.ones(9, 1), "b": ONE}, torch.tensor(0.0), "long")
    torch.manual_seed(0)
    lengths = {
        batch.inputs["a"].shape[1]
        for batch in (collate([long], modality_dropout=0.5) for _ in range(20))
    }
    assert lengths == {1, 9}


def test_equal_seeds_drop_equally_and_no_dropout_draws_nothing():
    samples = list(dataset())
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append([collate(samples, modality_dropout=0.5).masks for _ in range(10)])
    torch.testing.assert_close(batches[0], batches[1])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(batches[0], batches[2])
    state = torch.get_rng_state()
    plain = collate(samples)
    for rate in (0, 0.0, {"audio": 0.0, "text": 0}):
        batch = collate(samples, modality_dropout=rate)
        torch.testing.assert_close(batch[:3], plain[:3])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_moves_as_a_whole():
    batch = collate(list(dataset()))
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    tensors = [*moved.inputs.values(), *moved.masks.values(), moved.labels]
    assert {x.device.type for x in tensors} == {"meta"}
    assert (list(moved.inputs), moved.ids) == (list(batch.inputs), batch.ids)
    assert batch.labels.device.type == "cpu"
    torch.testing.assert_close(batch.to(torch.device("cpu"))[:3], batch[:3])


def test_a_batch_need_not_wait_for_its_copies():
    x, mask, labels = mock.Mock(), mock.Mock(), mock.Mock()
    Batch({"a": x}, {"a": mask}, labels, ["one"]).to("cuda:1", non_blocking=True)
    for tensor in (x, mask, labels):
        tensor.to.assert_called_once_with("cuda:1", non_blocking=True)


def test_a_model_takes_a_batch():
    data = dataset()
    batch = collate(list(data))
    model = TDMER(data.dims, 3, width=8, heads=2).eval()
    expected = model(batch.inputs, batch.masks).logits
    assert torch.equal(model(*batch).logits, expected)


@pytest.mark.usefixtures("unchecked")
def test_only_samples_are_collated():
    for item in ({"text": torch.ones(1, 4)}, (torch.ones(1, 4), 0)):
        with pytest.raises(
            TypeError, match=f"samples must be of Sample, got {type(item).__name__}"
        ):
            collate([item])


def test_dropout_leaves_the_samples_as_they_were():
    data, samples = dataset(), list(dataset())
    torch.manual_seed(0)
    collate(samples, modality_dropout=0.9)
    for sample, before in zip(samples, data, strict=True):
        torch.testing.assert_close(sample.inputs, before.inputs)


def test_workers_drop_too():
    data = MultimodalDataset(
        {"a": torch.ones(64, 1, 1), "b": torch.ones(64, 1, 1)}, torch.zeros(64)
    )
    loader = DataLoader(
        data,
        batch_size=32,
        collate_fn=partial(collate, modality_dropout=0.4),
        num_workers=2,
        multiprocessing_context="spawn",
    )
    one, two = (batch.masks["a"] for batch in loader)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (1.0, ValueError, r"modality_dropout of 'text' must be in \[0.0, 1.0\), got 1.0"),
        (-0.1, ValueError, r"modality_dropout of 'text' must be in \[0.0, 1.0\), got -0.1"),
        (
            {"text": 0.1, "audio": float("nan")},
            ValueError,
            "modality_dropout of 'audio' must be in",
        ),
        (
            {"text": 0.1},
            ValueError,
            r"modality_dropout must have an entry for each of \['text', 'a",
        ),
        ({"text": 0.1, "audio": 0.1, "video": 0.1}, ValueError, "modality_dropout must have an"),
        ("0.1", TypeError, "modality_dropout of 'text' must be a number, got str"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_dropout(rate, error, message):
    with pytest.raises(error, match=message):
        collate(list(dataset()), modality_dropout=rate)


# Report


def test_describe():
    inputs = sequences()
    inputs["text"][2][0, :2] = np.nan, -np.inf
    train = MultimodalDataset(inputs, [0.5, np.nan, 3.0], ["a", "b", "c"])
    test = MultimodalDataset({"text": [np.ones((3, 4))]}, [np.nan], ["b"])
    assert describe({"train": train, "test": test}).splitlines() == [
        "train: 3 samples, labels 0.5 to 3, 1 missing",
        "  text: 4 features, 1/3/5 steps (min/median/max), 1 NaN, 1 infinite",
        "  audio: 2 features, 0/1/2 steps (min/median/max), missing in 1",
        "test: 1 samples, labels 1 missing",
        "  text: 4 features, 3/3/3 steps (min/median/max)",
        "train and test share 1 ids, such as 'b'",
    ]


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (
            [-1.5, 0.0, 2.0, np.nan, -3.0],
            "labels -3 to 2 (2 negative, 1 zero, 1 positive), 1 missing",
        ),
        ([2, -100, 0, 0, -100], "labels 0 to 2 (0: 2, 2: 1), 2 missing"),
        ([0.25, 0.0, 0.5, 0.5, 1.0], "labels 0 to 1"),
        ([[0, 1], [1, 1], [0, 0], [0, -100], [0, 0]], "labels 0 to 1, 1 missing"),
        ([-100] * 5, "labels 5 missing"),
    ],
)
def test_describe_labels(labels, line):
    data = MultimodalDataset({"a": np.arange(5.0).reshape(5, 1, 1)}, labels)
    assert describe({"all": data}).splitlines()[0] == f"all: 5 samples, {line}"


def test_describe_names_classes(tmp_path):
    x = {"a": np.arange(4.0).reshape(4, 1) + 1}
    names = ["angry", "glad", "sad"]
    data = from_arrays(x, ["sad", "sad", None, "angry"], classes=names)
    write_store(tmp_path / "store", {"all": data, "none": data[2:3]})
    for part in (data, open_store(tmp_path / "store")["all"]):
        assert part.classes == names
        line = describe({"all": part}).splitlines()[0]
        assert line == "all: 4 samples, labels angry: 1, glad: 0, sad: 2, 1 missing"
    stored = open_store(tmp_path / "store")["none"]
    assert describe({"none": stored}).splitlines()[0] == "none: 1 samples, labels 1 missing"


def test_describe_does_not_list_many_classes():
    data = MultimodalDataset({"a": np.arange(11.0).reshape(11, 1, 1)}, np.arange(11))
    assert describe({"all": data}).splitlines()[0] == "all: 11 samples, labels 0 to 10"


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_describe_counts_overflow_and_idle_features(kind):
    x = kind(np.array([[[0.0, 1e39, np.inf], [0.0] * 3], [[0.0, 1.0, -1e300], [0.0] * 3]]))
    lines = describe({"all": MultimodalDataset({"a": x}, [0.5, 0.5])}).splitlines()
    assert lines[1:] == [
        "  a: 3 features, 2/2/2 steps (min/median/max), 3 infinite, 2 of them beyond float32, "
        "1 features always 0"
    ]


def test_describe_finds_duplicates_and_leaks():
    x = sequences()
    train = MultimodalDataset(
        {name: [s[0], s[1], s[0], s[2], s[2]] for name, s in x.items()},
        np.zeros(5),
        ["one", "two", "three", "four", "four"],
    )
    test = MultimodalDataset(
        {name: [s[1], s[2], s[0][:0], s[0][:0]] for name, s in x.items()},
        np.zeros(4),
        ["new", "four", "-", "--"],
    )
    lines = describe({"train": train, "test": test}).splitlines()
    assert [line for line in lines if "features" not in line] == [
        "train: 5 samples, labels 0 to 0",
        "  1 ids occur more than once, such as 'four'",
        "  1 samples are there under several ids, such as ['one', 'three']",
        "test: 4 samples, labels 0 to 0",
        "  2 samples have no modality, such as '-'",
        "train and test share 1 ids, such as 'four'",
        "train and test share 1 samples under different ids, such as ('two', 'new')",
    ]
    assert describe(train) == describe({"data": train})


def test_describe_names_another_id_though_the_same_is_there_too():
    x = np.ones((2, 1, 1))
    train = MultimodalDataset({"a": x[:1]}, [0.0], ["one"])
    test = MultimodalDataset({"a": x}, [0.0, 0.0], ["one", "two"])
    lines = describe({"train": train, "test": test}).splitlines()
    end = "share 1 samples under different ids, such as ('one', 'two')"
    assert lines[-1] == f"train and test {end}"


def test_describe_tells_contents_apart_that_are_the_same_bytes():
    # One sequence of two steps, or two of one step: by bytes alone they are equal.
    x, none = np.ones((2, 1)), np.ones((0, 1))
    inputs = {"a": [x, x[:1], none], "b": [none, x[:1], x]}
    assert "several ids" not in describe({"all": MultimodalDataset(inputs, [0.0, 1.0, 2.0])})


def test_data_sets_can_be_saved():
    buffer = io.BytesIO()
    pickle.dump(dataset(), buffer)
    copy = pickle.loads(buffer.getvalue())
    assert copy.ids == dataset().ids
    torch.testing.assert_close(copy[2].inputs, dataset()[2].inputs)
