"""Masks: zeroing, averaging and leaving out what is not real."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmer.masks import is_readable, masked_mean, real_first, unless_full, without_hidden, zero_pads
from tests.ragged import ragged

NAN, INF = float("nan"), float("inf")


class TestPooling:
    def test_equals_numpy_on_the_real_steps(self):
        x, mask = ragged(5, 7, 3)
        expected = np.stack([x[i, mask[i]].numpy().mean(0) for i in range(5)])
        np.testing.assert_allclose(masked_mean(x, mask).numpy(), expected, atol=1e-6)

    def test_without_a_mask_every_step_counts(self):
        x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(masked_mean(x), x.mean(1))

    def test_no_real_step_gives_zero_and_no_gradient(self):
        x = torch.full((2, 3, 1), NAN, requires_grad=True)
        pooled = masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))
        pooled.sum().backward()
        assert pooled.tolist() == [[0.0], [0.0]]
        assert x.grad.tolist() == torch.zeros(2, 3, 1).tolist()
        assert masked_mean(torch.zeros(2, 0, 1)).tolist() == [[0.0], [0.0]]

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("x", "mask", "error", "message"),
        [
            (torch.zeros(2, 3), None, ValueError, r"x must have 3 axes, got shape \(2, 3\)"),
            (torch.zeros(2, 3, 1).int(), None, TypeError, "x must be floating point"),
            (torch.zeros(2, 3, 1), torch.ones(2, 3), TypeError, "mask must be a bool tensor"),
            (
                torch.zeros(2, 3, 1),
                torch.ones(2, 4, dtype=torch.bool),
                ValueError,
                r"mask must have shape \(2, 3\), got \(2, 4\)",
            ),
        ],
    )
    def test_bad_input(self, x, mask, error, message):
        with pytest.raises(error, match=message):
            masked_mean(x, mask)

    def test_zero_pads_keeps_the_rest(self):
        x, mask = ragged(3, 4, 2)
        zeroed = zero_pads(x, mask)
        assert torch.equal(zeroed[mask], x[mask])
        assert not zeroed[~mask].any()
        assert zero_pads(x, None) is x


class TestRealFirst:
    def test_keeps_the_order_and_the_way_back(self):
        x = torch.arange(1.0, 9.0).view(2, 4, 1)
        mask = torch.tensor([[False, True, False, True], [True, True, True, True]])
        front, places = real_first(x.masked_fill(~mask.unsqueeze(2), NAN), mask)
        assert front.squeeze(2).tolist() == [[2.0, 4.0, 0.0, 0.0], [5.0, 6.0, 7.0, 8.0]]
        back = torch.zeros_like(x).scatter(1, places, front)
        assert torch.equal(back, zero_pads(x, mask))


class TestWithoutHidden:
    @settings(deadline=None, derandomize=True)
    @given(st.integers(0, 4), st.integers(1, 6), st.floats(0.0, 1.0), st.integers(0, 2**20))
    def test_keeps_the_real_steps_in_order(self, b, t, real, seed):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(b, t, generator=generator) < real
        x = torch.arange(b * t, dtype=torch.float32).view(b, t, 1)
        left, (found, twice) = without_hidden(mask, x, 2 * x)
        steps = [row.sum().item() for row in mask]
        longest = max([1, *steps])
        assert found.shape == (b, longest, 1)
        assert torch.equal(twice, 2 * found)
        for row in range(b):
            kept = found[row] if left is None else found[row][left[row]]
            assert torch.equal(kept, x[row][mask[row]])
        assert (left is None) == (set(steps) == {longest})

    def test_long_sequences_keep_their_order_too(self):
        mask = torch.arange(2000).unsqueeze(0) % 3 > 0
        _, (found,) = without_hidden(mask, torch.arange(2000.0).view(1, 2000, 1))
        assert torch.equal(found.flatten(), torch.arange(2000.0)[mask[0]])

    def test_no_mask_leaves_all(self):
        x = torch.zeros(2, 3, 1)
        mask, (same,) = without_hidden(None, x)
        assert mask is None
        assert same is x

    def test_nothing_is_left_out_where_values_may_not_be_read(self):
        x, mask = ragged(3, 5, 2)
        mask[:, 4] = False
        seen, (all_steps,) = torch.vmap(lambda x, m: without_hidden(m, x))(x[None], mask[None])
        assert torch.equal(seen[0], mask)
        assert all_steps.shape == (1, 3, 5, 2)


def test_a_full_mask_is_none():
    assert unless_full(None) is None
    assert unless_full(torch.ones(2, 3, dtype=torch.bool)) is None
    some = torch.tensor([True, False])
    assert unless_full(some) is some
    assert unless_full(torch.ones(2, dtype=torch.bool, device="meta")) is not None


def test_values_are_read_on_a_cpu_only_and_never_while_traced():
    mask = torch.ones(3, dtype=torch.bool)
    assert is_readable(mask)
    assert not is_readable(mask.to("meta"))

    def read(mask):
        return mask if is_readable(mask) else ~mask

    assert torch.equal(read(mask), mask)
    for traced in (torch.vmap(read), torch.compile(read, backend="eager")):
        assert torch.equal(traced(mask), ~mask)
