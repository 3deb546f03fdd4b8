"""The length-bucketing batch sampler: every sample once, on every number of ranks, few pads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tdmer.data import LengthBucketSampler, MultimodalDataset, collate


def draw(count, seed=0):
    return np.random.default_rng(seed).integers(1, 100, count).tolist()


def ranks(lengths, batch_size, number, **options):
    return [
        list(LengthBucketSampler(lengths, batch_size, num_replicas=number, rank=rank, **options))
        for rank in range(number)
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(3, 90),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_sample_once_in_equally_many_batches(number, count, size, pool, shuffle, seed):
    found = ranks(draw(count), size, number, pool=pool, shuffle=shuffle, seed=seed)
    assert sorted(i for rank in found for batch in rank for i in batch) == list(range(count))
    assert {len(rank) for rank in found} == {
        len(LengthBucketSampler(draw(count), size, num_replicas=number))
    }
    sizes = [len(batch) for rank in found for batch in rank]
    assert min(sizes) >= max(1, max(sizes) - 1)
    assert max(sizes) <= size or count // number < -(-count // (size * number))


def test_the_seed_and_the_epoch_decide():
    sampler = LengthBucketSampler(draw(60), 8, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    assert list(LengthBucketSampler(draw(60), 8, seed=3)) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    # Not the batches of another seed's epoch, either.
    other = LengthBucketSampler(draw(60), 8, seed=4)
    assert list(other) not in (first, second)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_change_from_epoch_to_epoch_and_come_in_no_order():
    lengths = draw(400)
    sampler = LengthBucketSampler(lengths, 10, pool=4)
    first = {frozenset(batch) for batch in sampler}
    together = LengthBucketSampler(lengths, 10, pool=40)
    longest = [max(lengths[i] for i in batch) for batch in together]
    assert longest != sorted(longest)
    sampler.set_epoch(1)
    assert len(first & {frozenset(batch) for batch in sampler}) < 4


def padded(lengths, batches):
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


def test_few_steps_are_pads():
    lengths = draw(640)
    sampler = LengthBucketSampler(lengths, 16)
    random = np.random.default_rng(1).permutation(640).reshape(40, 16).tolist()
    assert padded(lengths, sampler) < 1.1 * sum(lengths)
    assert padded(lengths, random) > 1.7 * sum(lengths)


def test_the_ranks_of_a_step_are_neighbours_in_length():
    lengths = draw(600)
    steps = zip(*ranks(lengths, 10, 3), strict=True)
    longest = [[max(lengths[i] for i in batch) for batch in step] for step in steps]
    assert np.mean([max(step) - min(step) for step in longest]) < 8


def test_modalities_are_summed():
    by_name = {"text": torch.tensor([1, 3, 2]), "audio": torch.tensor([9, 1, 4])}
    sampler = LengthBucketSampler(by_name, 1, shuffle=False)
    assert list(sampler) == [[1], [2], [0]]


def test_serves_a_loader():
    data = MultimodalDataset(
        {"text": [np.ones((t, 2), np.float32) for t in draw(20)]}, labels=list(range(20))
    )
    loader = DataLoader(
        data, batch_sampler=LengthBucketSampler(data.lengths, 4), collate_fn=collate
    )
    assert len(loader) == 5
    assert sorted(int(y) for batch in loader for y in batch.labels) == list(range(20))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("lengths", "options", "error", "message"),
    [
        ([1, 2], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ([1, 2], {"batch_size": 1.0}, TypeError, "batch_size must be an int, got float"),
        ([1, 2], {"pool": 0}, ValueError, "pool must be at least 1, got 0"),
        ([1, 2], {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ([1, 2], {"rank": 1}, ValueError, "rank must be below num_replicas, 1, got 1"),
        ([1, 2], {"num_replicas": 3}, ValueError, "lengths must be at least 3, one per rank, got"),
        ({"a": [1, 2], "b": [1]}, {}, ValueError, "lengths must be of one number of samples"),
        ({}, {}, ValueError, "lengths must be of one number of samples"),
    ],
)
def test_bad_input(lengths, options, error, message):
    with pytest.raises(error, match=message):
        LengthBucketSampler(lengths, **{"batch_size": 2, **options})
