"""Central moment discrepancy: value, mathematics, gradients, masks, precision, compilers."""

import math
from contextlib import AbstractContextManager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from tdmer.losses import (
    CMDLoss,
    _moments,
    central_moments,
    cmd,
    cmd_loss,
    corrected_cmd_loss,
    merge_moments,
    pairwise_cmd_loss,
)

from . import oracles
from .strategies import masked_samples, samples, several_samples, shifted_samples, thorough

ORDERS = st.integers(1, 7)
SPANS = st.sampled_from([0.5, 1.0, 2.0, 3.0])
BLOCKS = st.sampled_from([1, 5, 2**18])
# Statistics of float64 samples in [0, 1]: rounding alone.
EXACT = {"rtol": 1e-12, "atol": 1e-13}

traceable = pytest.mark.skipif(
    hasattr(cmd_loss, "__wrapped__"), reason="shape checks at run time cannot be traced"
)


far_outside = pytest.mark.filterwarnings("ignore:features must lie in an interval")


def blocks_of(elements: int) -> AbstractContextManager[object]:
    """Cut samples into blocks of so many elements, so that small samples have several."""
    return mock.patch.object(_moments, "BLOCK", elements)


def random_samples(*lengths: int, d: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(n, d, generator=generator, dtype=torch.float64).pow(1 + i).to(dtype)
        for i, n in enumerate(lengths)
    ]


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


# Oracle


@thorough
@given(samples(), ORDERS, BLOCKS)
def test_central_moments_are_those_of_scipy(x: Tensor, n_moments: int, elements: int) -> None:
    with blocks_of(elements):
        moments = central_moments(x, n_moments)
    expected = torch.from_numpy(oracles.central_moments(x.numpy(), n_moments))
    torch.testing.assert_close(moments, expected, **EXACT)


@thorough
@given(several_samples(3), ORDERS, SPANS, BLOCKS)
def test_losses_are_those_of_scipy(
    parts: list[Tensor], n_moments: int, span: float, elements: int
) -> None:
    arrays = [part.numpy() for part in parts]
    with blocks_of(elements):
        loss = cmd_loss(parts[0], parts[1], n_moments=n_moments, span=span)
        pairwise = pairwise_cmd_loss(parts, n_moments=n_moments, span=span)
    expected = oracles.cmd(arrays[0], arrays[1], n_moments, span)
    assert loss.item() == pytest.approx(expected, rel=1e-11, abs=1e-11)
    expected = oracles.pairwise_cmd(arrays, n_moments, span)
    assert pairwise.item() == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_float32_over_many_blocks() -> None:
    x, y = random_samples(9000, 5001, d=64, dtype=torch.float32)
    expected = oracles.cmd(x.numpy(), y.numpy(), 5, 1.0)
    assert cmd_loss(x, y).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_corrected_loss_subtracts_the_variance_of_the_moments(mirrored: bool) -> None:
    x, y = random_samples(40, 300)
    x, y = (x.pow(3), 1 - y.pow(2)) if mirrored else (x, y.sqrt())
    gaps = oracles.central_moments(x.numpy(), 4) - oracles.central_moments(y.numpy(), 4)
    distances = np.linalg.norm(gaps, axis=1)
    noise = oracles.moment_variance(x.numpy(), 4) + oracles.moment_variance(y.numpy(), 4)
    expected = np.maximum(distances - noise / distances, 0.0).sum()
    assert corrected_cmd_loss(x, y, n_moments=4).item() == pytest.approx(expected, rel=1e-11)
    # Mirrored skew is above chance in the odd orders; elsewhere some order is below it.
    above = distances**2 > noise
    assert above[[0, 2]].all() if mirrored else not above.all()


# Properties


@thorough
@given(several_samples(2), ORDERS)
def test_symmetric(parts: list[Tensor], n_moments: int) -> None:
    x, y = parts
    assert cmd_loss(x, y, n_moments=n_moments) == cmd_loss(y, x, n_moments=n_moments)


@thorough
@given(samples())
def test_identical_samples_score_zero(x: Tensor) -> None:
    assert cmd_loss(x, x.clone()) == 0


@thorough
@given(several_samples(3), ORDERS)
def test_triangle_inequality(parts: list[Tensor], n_moments: int) -> None:
    x, y, z = parts
    through = cmd_loss(x, y, n_moments=n_moments) + cmd_loss(y, z, n_moments=n_moments)
    assert cmd_loss(x, z, n_moments=n_moments) <= through + 1e-12


@thorough
@given(samples(), ORDERS, st.randoms(use_true_random=False), st.integers(2, 3))
def test_order_and_number_of_copies_of_rows_do_not_matter(
    x: Tensor, n_moments: int, random: object, copies: int
) -> None:
    rows = list(range(len(x))) * copies
    random.shuffle(rows)
    moments = central_moments(x[rows], n_moments)
    torch.testing.assert_close(moments, central_moments(x, n_moments), **EXACT)


@thorough
@given(several_samples(2), st.integers(-100, 100))
def test_common_shift_changes_nothing(parts: list[Tensor], shift: int) -> None:
    x, y = parts
    torch.testing.assert_close(cmd_loss(x + shift, y + shift), cmd_loss(x, y), rtol=1e-9, atol=1e-9)


@thorough
@given(several_samples(2), ORDERS, st.sampled_from([1e-60, 0.1, 3.0, 1e60]))
def test_units_do_not_matter(parts: list[Tensor], n_moments: int, unit: float) -> None:
    x, y = parts
    scaled = cmd_loss(unit * x, unit * y, n_moments=n_moments, span=unit)
    torch.testing.assert_close(scaled, cmd_loss(x, y, n_moments=n_moments), **EXACT)


@thorough
@given(several_samples(2), ORDERS)
def test_grows_with_the_highest_order(parts: list[Tensor], n_moments: int) -> None:
    x, y = parts
    assert cmd_loss(x, y, n_moments=n_moments + 1) >= cmd_loss(x, y, n_moments=n_moments)


@thorough
@given(several_samples(2), ORDERS)
def test_bounded_on_the_unit_cube(parts: list[Tensor], n_moments: int) -> None:
    # On [0, 1] a central moment is extreme for a sample of zeros and ones, a share p of it ones.
    p = np.linspace(0, 1, 2001)
    bound = 1.0
    for k in range(2, n_moments + 1):
        extreme = np.max(p * (1 - p) ** k + (1 - p) * (-p) ** k)
        bound += extreme if k % 2 == 0 else 2 * extreme
    x, y = parts
    assert cmd_loss(x, y, n_moments=n_moments) <= math.sqrt(x.shape[1]) * bound + 1e-6


@far_outside
@thorough
@given(shifted_samples(), ORDERS, SPANS)
def test_pure_shift_gives_its_length(
    case: tuple[Tensor, Tensor, float], n_moments: int, span: float
) -> None:
    x, shifted, length = case
    loss = cmd_loss(x, shifted, n_moments=n_moments, span=span).item()
    assert loss == pytest.approx(length / span, rel=1e-9, abs=1e-9)


@thorough
@given(masked_samples(), ORDERS, BLOCKS)
def test_masked_sample_is_its_real_rows(
    case: tuple[Tensor, Tensor, Tensor], n_moments: int, elements: int
) -> None:
    x, mask, real = case
    with blocks_of(elements):
        moments = central_moments(x, n_moments, mask=mask)
    torch.testing.assert_close(moments, central_moments(real, n_moments), **EXACT)


@thorough
@given(samples(least=2), ORDERS, BLOCKS, st.data())
def test_whole_weights_are_repetitions(
    x: Tensor, n_moments: int, elements: int, data: st.DataObject
) -> None:
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x)).filter(any))
    repeated = x.repeat_interleave(torch.tensor(times), dim=0)
    with blocks_of(elements):
        moments = central_moments(x, n_moments, weights=torch.tensor(times).double())
    torch.testing.assert_close(moments, central_moments(repeated, n_moments), **EXACT)


@thorough
@given(several_samples(3), ORDERS)
def test_moments_of_the_whole_from_those_of_its_parts(parts: list[Tensor], n_moments: int) -> None:
    moments = torch.stack([central_moments(part, n_moments) for part in parts])
    merged = merge_moments(moments, torch.tensor([float(len(part)) for part in parts]).double())
    torch.testing.assert_close(merged, central_moments(torch.cat(parts), n_moments), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_merged_moments_have_the_precision_of_the_moments(dtype: torch.dtype) -> None:
    parts = random_samples(40, 90)
    moments = torch.stack([central_moments(part) for part in parts])
    merged = merge_moments(moments, torch.tensor([40.0, 90.0], dtype=dtype))
    torch.testing.assert_close(merged, central_moments(torch.cat(parts)), **EXACT)
    many = torch.tensor([4e4, 9e4], dtype=torch.float32)
    assert merge_moments(moments.float(), many.double()).dtype == torch.float32


@thorough
@given(several_samples(2), ORDERS)
def test_correction_only_lowers(parts: list[Tensor], n_moments: int) -> None:
    x, y = parts
    corrected = corrected_cmd_loss(x, y, n_moments=n_moments)
    assert 0 <= corrected <= cmd_loss(x, y, n_moments=n_moments)


@far_outside
@thorough
@given(masked_samples(d=2), samples(d=2), ORDERS, SPANS, BLOCKS)
def test_plain_and_blockwise_paths_agree(
    case: tuple[Tensor, Tensor, Tensor], y: Tensor, n_moments: int, span: float, elements: int
) -> None:
    x, mask, _ = case

    def loss(x: Tensor) -> Tensor:
        return cmd_loss(x, y, n_moments=n_moments, span=span, x_mask=mask)

    # Not of the loss: where a distance is 0, rounding decides its gradient.
    def contracted(x: Tensor) -> Tensor:
        moments = central_moments(x, n_moments, mask=mask)
        return (moments * torch.arange(1.0, moments.numel() + 1).view_as(moments)).sum()

    leaf = x.clone().requires_grad_()
    with blocks_of(elements):
        eager, (eager_gradient,) = loss(x), gradients(contracted(leaf), leaf)
    plain = torch.func.vmap(loss)(x.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(eager, plain, **EXACT)
    torch.testing.assert_close(eager_gradient, torch.func.grad(contracted)(x), **EXACT)


# Exact cases


def test_leading_axes_are_samples() -> None:
    (steps,) = random_samples(12)
    mask = torch.arange(12) % 3 > 0
    moments = central_moments(steps.view(3, 4, 3), mask=mask.view(3, 4))
    assert torch.equal(moments, central_moments(steps, mask=mask))
    assert torch.equal(central_moments(steps[0]), central_moments(steps[:1]))


def test_mask_and_weights_together() -> None:
    (x,) = random_samples(6)
    mask, weights = torch.tensor([1, 0, 1, 1, 0, 1]).bool(), torch.arange(1.0, 7.0).double()
    weights[1] = math.nan
    expected = central_moments(x[mask], weights=weights[mask])
    moments = central_moments(x, mask=mask, weights=weights)
    torch.testing.assert_close(moments, expected, **EXACT)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: central_moments(x, weights=w),
        lambda x, w: merge_moments(x[:, None], w),
        lambda x, w: cmd_loss(x, x, x_weights=w),
        lambda x, w: cmd_loss(x, x, y_weights=w.requires_grad_()),
        lambda x, w: CMDLoss()(x, x, x_weights=w),
    ],
)
def test_weights_that_are_none_are_refused(call: object, wrong: float) -> None:
    (x,) = random_samples(3)
    rule = f"weights must be at least 0 and have a finite sum, got values from .*{wrong:g}"
    with pytest.raises(ValueError, match=rule):
        call(x, torch.tensor([wrong, 1.0, 1.0]))


@pytest.mark.parametrize("first", [math.nan, -0.25, -4.0])
def test_weights_that_cannot_be_looked_at_give_one_result_on_every_path(first: float) -> None:
    x, y = random_samples(3, 4)
    weights = torch.tensor([first, 1.0, 2.0]).double()
    with mock.patch.object(cmd, "is_readable", return_value=False):
        blockwise = cmd_loss(x, y, x_weights=weights)
        plain = cmd_loss(x, y, x_weights=weights.clone().requires_grad_())
        mean = central_moments(x, 1, weights=weights)[0]
    expected = (weights.unsqueeze(1) * x).sum(dim=0) / weights.sum()
    torch.testing.assert_close(mean, expected, equal_nan=True, **EXACT)
    torch.testing.assert_close(plain.detach(), blockwise, equal_nan=True, **EXACT)
    # Garbage is not turned into a loss of 0.
    assert blockwise.isnan() if math.isnan(first) else blockwise > 0


def test_a_mask_that_hides_nothing_costs_nothing() -> None:
    parts = random_samples(6, 6, 6)
    with mock.patch.object(cmd, "moments_of", wraps=_moments.moments_of) as moments:
        masked = pairwise_cmd_loss(parts, masks=[torch.ones(6, dtype=torch.bool)] * 3)
    assert moments.call_count == 1
    assert masked == pairwise_cmd_loss(parts)


@pytest.mark.parametrize(("n_moments", "most"), [(1, 1.0), (2, 1.25), (5, 2.0)])
def test_features_far_outside_the_span_are_noticed(n_moments: int, most: float) -> None:
    x = torch.zeros(2, 4)
    # Two samples at the two ends of the interval are as far apart as any in it.
    inside = cmd_loss(x, x + 3, n_moments=n_moments, span=3.0)
    assert inside == 2.0
    # Means alone can go beyond the bound, which is sqrt(d) times what one feature can reach.
    just_inside = cmd_loss(x, x + 0.999 * most, n_moments=n_moments)
    assert just_inside.item() == pytest.approx(0.999 * most * 2)
    for call in (
        lambda: cmd_loss(x, x + 1.002 * most, n_moments=n_moments),
        lambda: pairwise_cmd_loss([x, x + 1.503 * most, x], n_moments=n_moments),
    ):
        with pytest.warns(UserWarning, match="features must lie in an interval") as record:
            call()
        # Run-time checks of shapes put a frame of their own between.
        assert hasattr(cmd_loss, "__wrapped__") or record[0].filename == __file__
    pairwise_cmd_loss([x, x + 1.497 * most, x], n_moments=n_moments)


def test_any_layout_in_memory() -> None:
    (x,) = random_samples(10, d=4)
    transposed = central_moments(x.t().contiguous().t())
    torch.testing.assert_close(transposed, central_moments(x), **EXACT)
    steps = x.view(5, 2, 4).transpose(0, 1)
    torch.testing.assert_close(central_moments(steps), central_moments(x), **EXACT)


def test_side_without_a_real_sample_scores_zero() -> None:
    x, y = random_samples(4, 3)
    nothing = torch.zeros(4, dtype=torch.bool)
    assert cmd_loss(x, y, x_mask=nothing) == 0
    assert cmd_loss(x[:0], y) == 0
    assert cmd_loss(x, y, x_weights=torch.zeros(4).double()) == 0
    assert corrected_cmd_loss(x, y, x_mask=nothing) == 0
    assert torch.equal(central_moments(x, mask=nothing), torch.zeros(5, 3).double())
    assert torch.equal(central_moments(x[:0]), torch.zeros(5, 3).double())


def test_pairs_without_a_real_sample_add_zero() -> None:
    x, y, z = random_samples(4, 3, 5)
    masks = {"z": torch.zeros(5, dtype=torch.bool)}
    torch.testing.assert_close(
        pairwise_cmd_loss({"x": x, "y": y, "z": z}, masks=masks), cmd_loss(x, y)
    )


def test_fewer_than_two_samples_have_no_pair() -> None:
    x = random_samples(4)[0].requires_grad_()
    loss = pairwise_cmd_loss([x])
    assert loss == 0
    assert torch.equal(gradients(loss, x)[0], torch.zeros_like(x))


def test_mapping_and_sequence_agree() -> None:
    x, y, z = random_samples(4, 4, 4)
    mask = torch.tensor([True, False, True, True])
    by_name = pairwise_cmd_loss({"x": x, "y": y, "z": z}, masks={"y": mask})
    assert by_name == pairwise_cmd_loss([x, y, z], masks=[None, mask, None])
    expected = cmd_loss(x, y[mask]) + cmd_loss(x, z) + cmd_loss(y[mask], z)
    torch.testing.assert_close(by_name, expected, **EXACT)


def test_moments_are_computed_once_per_sample() -> None:
    parts = random_samples(4, 5, 6, 7)
    with mock.patch.object(cmd, "moments_of", wraps=_moments.moments_of) as moments:
        pairwise_cmd_loss(parts)
    assert moments.call_count == 4


def test_samples_of_one_shape_are_one_operation() -> None:
    parts = [part.requires_grad_() for part in random_samples(6, 6, 6)]
    with mock.patch.object(cmd, "moments_of", wraps=_moments.moments_of) as moments:
        together = pairwise_cmd_loss(parts)
    assert moments.call_count == 1
    with mock.patch.object(cmd, "_SMALL", 12):
        apart = pairwise_cmd_loss(parts)
    torch.testing.assert_close(together, apart, **EXACT)
    for a, b in zip(gradients(together, *parts), gradients(apart, *parts), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


# Gradients


@pytest.mark.parametrize("n_moments", [1, 2, 5])
@pytest.mark.parametrize("elements", [6, 2**18])
@pytest.mark.parametrize("kind", ["all", "masked", "weighted", "both"])
def test_gradcheck(kind: str, elements: int, n_moments: int) -> None:
    x, y = random_samples(5, 4)
    x_mask = torch.tensor([1, 1, 0, 1, 1]).bool() if kind in ("masked", "both") else None
    weights = (
        torch.tensor([1.0, 0.5, 3.0, 2.0, 0.25]).double() if kind in ("weighted", "both") else None
    )

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cmd_loss(x, y, n_moments=n_moments, span=1.5, x_mask=x_mask, x_weights=weights)

    inputs = (x.requires_grad_(), y.requires_grad_())
    with blocks_of(elements):
        # Forward mode knows no blocks.
        assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=elements == 6)
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_gradcheck_of_weights() -> None:
    x, y = random_samples(5, 4)
    weights = torch.tensor([1.0, 0.5, 3.0, 2.0, 0.25]).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: cmd_loss(x, y, x_weights=w),
        (x.requires_grad_(), weights),
        check_forward_ad=True,
    )


def test_gradcheck_of_merged_moments() -> None:
    moments = torch.stack([central_moments(part) for part in random_samples(5, 4)])
    weights = torch.tensor([2.0, 1.0]).double().requires_grad_()
    inputs = (moments.requires_grad_(), weights)
    assert torch.autograd.gradcheck(merge_moments, inputs, check_forward_ad=True)


@pytest.mark.parametrize("lengths", [(4, 4), (4, 3)], ids=["side by side", "apart"])
def test_forward_mode_is_the_directional_derivative(lengths: tuple[int, int]) -> None:
    x, y = random_samples(*lengths)
    direction = torch.linspace(-1, 1, x.numel()).double().view_as(x)
    with forward_ad.dual_level():
        loss = cmd_loss(forward_ad.make_dual(x, direction), y)
        found = forward_ad.unpack_dual(loss).tangent
    x.requires_grad_()
    expected = (gradients(cmd_loss(x, y), x)[0] * direction).sum()
    torch.testing.assert_close(found, expected, **EXACT)


def test_noise_is_a_constant_to_the_gradient() -> None:
    x, y = random_samples(40, 50)
    x.requires_grad_()
    loss = corrected_cmd_loss(x, y, n_moments=1)
    distance = cmd_loss(x, y, n_moments=1)
    noise = (distance - loss).item() * distance.item()
    expected = gradients(distance, x)[0] * (1 + noise / distance.item() ** 2)
    torch.testing.assert_close(gradients(loss, x)[0], expected)


DEGENERATE = {
    "equal inputs": torch.tensor([[0.1, 0.7], [0.4, 0.2]]),
    "one row": torch.tensor([[0.3, 0.6]]),
    "constant columns": torch.full((4, 2), 0.1),
    "zeros": torch.zeros(4, 2),
    "saturated": torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [cmd_loss, corrected_cmd_loss])
@pytest.mark.parametrize("name", DEGENERATE)
def test_finite_gradient_where_a_norm_is_zero(name: str, loss: object, dtype: torch.dtype) -> None:
    x = DEGENERATE[name].to(dtype).requires_grad_()
    for y in (x.detach().clone(), torch.rand(3, 2).to(dtype)):
        y.requires_grad_()
        value = loss(x, y)
        assert value.isfinite()
        for gradient in gradients(value, x, y):
            assert gradient.isfinite().all()
    value = loss(x, x.detach().clone())
    assert torch.equal(gradients(value, x)[0], torch.zeros_like(x))


def test_finite_gradient_with_all_rows_masked_but_one() -> None:
    x, y = (part.requires_grad_() for part in random_samples(5, 4))
    one, none = torch.eye(5, dtype=torch.bool)[2], torch.zeros(5, dtype=torch.bool)
    x_gradient, y_gradient = gradients(cmd_loss(x, y, x_mask=one), x, y)
    assert x_gradient.isfinite().all()
    assert y_gradient.isfinite().all()
    assert (x_gradient[2] != 0).any()
    for gradient in gradients(cmd_loss(x, y, x_mask=none), x, y):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_backward_keeps_the_input_and_no_power_of_it() -> None:
    parts = [part.requires_grad_() for part in random_samples(500, 400, d=8)]
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with blocks_of(2**8), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cmd_loss(*parts)
    extra = sum(kept.values()) - sum(part.numel() for part in parts)
    # A share for every row, and statistics of eight features; one power would be 7200.
    assert extra <= 900 + 10 * 5 * 8


# Pads


@pytest.mark.parametrize("elements", [6, 2**18])
@pytest.mark.parametrize("trash", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("loss", [cmd_loss, corrected_cmd_loss])
def test_pads_change_nothing(loss: object, trash: float, elements: int) -> None:
    x, y = random_samples(5, 4, dtype=torch.float32)
    x = x.requires_grad_()
    padded = torch.cat([x.detach(), torch.full((3, 3), trash)]).requires_grad_()
    mask = torch.arange(8) < 5
    with blocks_of(elements):
        value, expected = loss(padded, y, x_mask=mask), loss(x, y)
        gradient, expected_gradient = gradients(value, padded)[0], gradients(expected, x)[0]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:5], expected_gradient)
    assert torch.equal(gradient[5:], torch.zeros(3, 3))


@pytest.mark.parametrize("trash", [math.nan, math.inf])
def test_pads_change_nothing_on_the_plain_path(trash: float) -> None:
    x, y = random_samples(5, 4)
    padded = torch.cat([x, torch.full((3, 3), trash)])
    mask = torch.arange(8) < 5
    gradient = torch.func.grad(lambda x: cmd_loss(x, y, x_mask=mask))(padded)
    torch.testing.assert_close(gradient[:5], torch.func.grad(cmd_loss)(x, y), **EXACT)
    assert torch.equal(gradient[5:], torch.zeros(3, 3).double())


def test_pads_beside_a_large_mean_do_not_overflow_on_the_plain_path() -> None:
    x, mask = torch.full((3, 1), 1e9), torch.tensor([True, True, False])

    def highest(x: Tensor) -> Tensor:
        return central_moments(x, mask=mask)[-1, 0]

    gradient, value = torch.func.grad_and_value(highest)(x)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(3, 1))


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_low_precision_input(dtype: torch.dtype, masked: bool) -> None:
    x, y = random_samples(3000, 2000, d=16, dtype=dtype)
    mask = torch.arange(3000) % 5 > 0 if masked else None
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    loss, expected = cmd_loss(x, y, x_mask=mask), cmd_loss(exact, y.double(), x_mask=mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # The rounding of the input to 8 bits is the one error left.
    original = [part.numpy() for part in random_samples(3000, 2000, d=16)]
    kept = original[0] if mask is None else original[0][mask.numpy()]
    assert loss.item() == pytest.approx(oracles.cmd(kept, original[1], 5, 1.0), rel=1e-2)
    gradient, expected = gradients(loss, x)[0], gradients(expected, exact)[0]
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-2, atol=1e-6)


def test_autocast_keeps_the_statistics_in_float32() -> None:
    x, y = random_samples(300, 200, dtype=torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cmd_loss(x, y)
        plain = torch.func.functional_call(CMDLoss(), {}, (x, y))
        gradient = gradients(loss, x)[0]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cmd_loss(x, y))
    assert torch.equal(plain, loss)
    assert torch.equal(gradient, gradients(cmd_loss(x, y), x)[0])


def test_powers_of_a_large_span_stay_finite() -> None:
    x, y = random_samples(6, 5, dtype=torch.float32)
    scaled = cmd_loss(1e30 * x, 1e30 * y, span=1e30)
    torch.testing.assert_close(scaled, cmd_loss(x, y))


# Module


def test_module_equals_function() -> None:
    x, y = random_samples(6, 5)
    options = {"n_moments": 3, "span": 2.0}
    rows = {
        "x_mask": torch.tensor([1, 1, 0, 1, 1, 0]).bool(),
        "y_mask": torch.tensor([1, 1, 0, 1, 1]).bool(),
        "x_weights": torch.arange(6.0).double(),
        "y_weights": torch.arange(5.0).double(),
    }
    assert CMDLoss(**options)(x, y, **rows) == cmd_loss(x, y, **options, **rows)
    assert CMDLoss()(x, y) == cmd_loss(x, y)


# Compilers and transforms


@traceable
def test_compiles_without_a_graph_break() -> None:
    x, y, z = (part.requires_grad_() for part in random_samples(6, 6, 6, dtype=torch.float32))
    mask = torch.tensor([1, 1, 0, 1, 1, 0]).bool()

    def loss(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return pairwise_cmd_loss([x, y, z], masks=[mask, None, None]) + CMDLoss(span=2.0)(x, y)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y, z), loss(x, y, z))
    for gradient, expected in zip(
        gradients(compiled(x, y, z), x, y, z), gradients(loss(x, y, z), x, y, z), strict=True
    ):
        torch.testing.assert_close(gradient, expected)


def test_vmap_and_grad() -> None:
    x, y = random_samples(12, 4)
    batch = x.view(3, 4, 3)
    losses = torch.func.vmap(cmd_loss, in_dims=(0, None))(batch, y)
    expected = torch.stack([cmd_loss(part, y) for part in batch])
    torch.testing.assert_close(losses, expected, **EXACT)
    slopes = torch.func.vmap(torch.func.grad(cmd_loss), in_dims=(0, None))(batch, y)
    batch.requires_grad_()
    expected = gradients(sum(cmd_loss(part, y) for part in batch), batch)[0]
    torch.testing.assert_close(slopes, expected, **EXACT)
    directions = torch.func.jvp(lambda x: cmd_loss(x, y), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(directions, torch.func.grad(cmd_loss)(x, y).sum(), **EXACT)


@traceable
def test_exports_with_any_number_of_samples() -> None:
    x, y = random_samples(6, 5, dtype=torch.float32)
    rows = {0: torch.export.Dim("n", min=2, max=1000)}
    program = torch.export.export(CMDLoss(), (x, y), dynamic_shapes=(rows, None))
    longer = random_samples(90, dtype=torch.float32)[0]
    torch.testing.assert_close(program.module()(longer, y), cmd_loss(longer, y))


# Bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: central_moments(x.long()), TypeError, "x must be floating point"),
        (lambda x: central_moments(x[0, 0]), ValueError, "x must have a feature axis"),
        (lambda x: central_moments(x, 0), ValueError, "n_moments must be at least 1, got 0"),
        (lambda x: central_moments(x, 2.0), TypeError, "n_moments must be an int, got float"),
        (lambda x: central_moments(x, mask=x[:, 0]), TypeError, "mask must be a bool tensor"),
        (
            lambda x: central_moments(x, mask=torch.ones(3, dtype=torch.bool)),
            ValueError,
            r"mask must have shape \(4,\), got \(3,\)",
        ),
        (
            lambda x: central_moments(x, weights=torch.ones(4, dtype=torch.int64)),
            TypeError,
            "weights must be a floating point tensor, got torch.int64",
        ),
        (
            lambda x: cmd_loss(x, x, y_weights=torch.ones(4, 1)),
            ValueError,
            r"y_weights must have shape \(4,\), got \(4, 1\)",
        ),
        (lambda x: cmd_loss(x, x[:, :2]), ValueError, "y must have 3 features"),
        (lambda x: cmd_loss(x, x, span=0.0), ValueError, "span must be finite and above 0"),
        (lambda x: cmd_loss(x, x, span="1"), TypeError, "span must be a number, got str"),
        (lambda x: cmd_loss(x, x, x_mask=[True] * 4), TypeError, "x_mask must be a bool tensor"),
        (lambda x: corrected_cmd_loss(x, x[:, :2]), ValueError, "y must have 3 features"),
        (lambda x: corrected_cmd_loss(x, x, span=-1.0), ValueError, "span must be finite"),
        (lambda x: corrected_cmd_loss(x, x, n_moments=0), ValueError, "n_moments must be at least"),
        (lambda x: corrected_cmd_loss(x, x, y_mask=x), TypeError, "y_mask must be a bool tensor"),
        (lambda x: CMDLoss(n_moments=0), ValueError, "n_moments must be at least 1"),
        (lambda x: CMDLoss(span=math.inf), ValueError, "span must be finite"),
        (lambda x: merge_moments(x, x[:, 0]), ValueError, "moments must have 3 axes"),
        (lambda x: merge_moments(x[None], x[:, 0]), ValueError, r"weights must have shape \(1,\)"),
        (lambda x: pairwise_cmd_loss([]), ValueError, "samples must hold at least one sample"),
        (lambda x: pairwise_cmd_loss([x], n_moments=0), ValueError, "n_moments must be at least"),
        (lambda x: pairwise_cmd_loss([x], span=0.0), ValueError, "span must be finite"),
        (
            lambda x: pairwise_cmd_loss({"a": x, "b": x[:, :2]}),
            ValueError,
            r"samples\['b'\] must have 3 features on its last axis",
        ),
        (
            lambda x: pairwise_cmd_loss([x, x], masks=[None]),
            ValueError,
            r"masks must be of samples \[0, 1\], got of \[0\]",
        ),
        (
            lambda x: pairwise_cmd_loss({"a": x}, masks={"b": x[:, 0] > 0}),
            ValueError,
            r"masks must be of samples \['a'\], got of \['b'\]",
        ),
        (
            lambda x: pairwise_cmd_loss({"a": x}, masks=[x[:, 0] > 0]),
            ValueError,
            r"masks must be of samples \['a'\], got of \[0\]",
        ),
        (
            lambda x: pairwise_cmd_loss([x], masks={"a": x[:, 0] > 0}),
            ValueError,
            r"masks must be of samples \[0\], got of \['a'\]",
        ),
        (
            lambda x: pairwise_cmd_loss([x], masks=[x[:, 0]]),
            TypeError,
            r"masks\[0\] must be a bool tensor",
        ),
    ],
)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.rand(4, 3))
