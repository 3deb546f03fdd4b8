"""Orthogonality, reconstruction and cross-modal learning (Eqs. 4-6, 8, 9)."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, cosine
from scipy.stats import entropy
from torch.autograd import gradcheck

from tdmer import losses
from tdmer.losses import (
    CMDLoss,
    OrthogonalLoss,
    cmd_loss,
    cross_modal_loss,
    edge_entropy,
    orthogonal_loss,
    reconstruction_loss,
)

from .ragged import ragged, with_pads
from .strategies import paired_features, reconstructions, shifted_logits, thorough

NAN, INF = float("nan"), float("inf")
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
seeds = st.integers(0, 2**20)


def pads_change_nothing(loss, *shape):
    """Values and gradients of ``loss(x, y, mask)`` under any content and number of pads."""
    x, mask = ragged(*shape, dtype=torch.float64)
    y, _ = ragged(*shape, seed=0, dtype=torch.float64)
    y = y + 0.1
    results = []
    for steps, fill in ((0, 0.0), (3, NAN), (1, INF)):
        (a, full), (b, _) = (with_pads(z, mask, steps, fill) for z in (x, y))
        a.requires_grad_()
        b.requires_grad_()
        value = loss(a, b, full)
        value.backward()
        assert not a.grad[~full].any()
        results.append([value.detach(), a.grad[full], b.grad[full]])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def eager_gradient_and_value(function):
    """``torch.func.grad_and_value`` without its transform."""

    def found(x):
        x = x.clone().requires_grad_()
        value = function(x)
        return torch.autograd.grad(value, x)[0], value.detach()

    return found


def agree_in(dtype, loss, *inputs, **options):
    """``loss`` of inputs rounded to ``dtype`` is that of the same numbers in float64."""
    rounded = [x.to(dtype).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    value, expected = (loss(*given, **options) for given in (rounded, exact))
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(value, expected.to(value.dtype))
    value.sum().backward()
    expected.sum().backward()
    for one, two in zip(rounded, exact, strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad.to(dtype))


every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)


class TestOrthogonal:
    @thorough
    @given(paired_features())
    def test_known_angles(self, case):
        x, y, expected = case
        assert orthogonal_loss(x, y).item() == pytest.approx(expected, abs=1e-12)

    @every_dtype
    def test_precision(self, dtype):
        (x, mask), (y, _) = ragged(3, 4, 5), ragged(3, 4, 5, seed=0)
        agree_in(dtype, orthogonal_loss, x, y + 0.5, mask=mask)

    @pytest.mark.parametrize(
        ("up", "down"), [(1e30, 1.0), (3e19, 3e19), (1.0, 1e30), (1e37, 1e-6), (1e38, 7.0)]
    )
    @pytest.mark.parametrize("traced", [False, True])
    def test_squares_that_overflow(self, up, down, traced):
        x, y = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.6, 0.8], [1.0, 0.0]])
        x[0] *= up
        y[0] *= down
        gradient = torch.func.grad_and_value if traced else eager_gradient_and_value
        slope, value = gradient(lambda x: orthogonal_loss(x, y))(x)
        assert value.item() == pytest.approx(0.6)
        expected = torch.autograd.functional.jacobian(
            lambda x: orthogonal_loss(x, y.double()), x.double()
        )
        torch.testing.assert_close(slope, expected.float())

    @thorough
    @given(shapes, seeds)
    def test_equals_scipy(self, shape, seed):
        x, mask = ragged(*shape, seed=seed, dtype=torch.float64)
        y, _ = ragged(*shape, seed=seed + 1, dtype=torch.float64)
        y = torch.where(y.isnan(), torch.ones_like(y), y)
        pairs = zip(x[mask].numpy(), y[mask].numpy(), strict=True)
        cosines = [1 - cosine(a, b) for a, b in pairs]
        for penalty in (torch.abs, torch.square, torch.relu):
            expected = np.mean([penalty(torch.tensor(c)).item() for c in cosines])
            found = orthogonal_loss(x, y, mask=mask, penalty=penalty)
            assert found.item() == pytest.approx(expected, abs=1e-12)

    @thorough
    @given(shapes, seeds, st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3))
    def test_scale_and_sign_do_not_matter_and_order_neither(self, shape, seed, up, down):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        y = torch.randn(*shape, generator=generator, dtype=torch.float64)
        value = orthogonal_loss(x, y)
        assert 0 <= value <= 1 + 1e-12
        torch.testing.assert_close(orthogonal_loss(up * y, down * x), value)

    def test_exact_cases(self):
        x = torch.tensor([[1.0, 0.0]])
        assert orthogonal_loss(x, torch.tensor([[0.0, 3.0]])).item() == 0.0
        assert orthogonal_loss(x, -2 * x).item() == 1.0
        assert orthogonal_loss(x, -2 * x, penalty=lambda c: c).item() == -1.0
        assert orthogonal_loss(x, torch.tensor([[0.6, 0.8]])).item() == pytest.approx(0.6)

    def test_gradient(self):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
        assert gradcheck(orthogonal_loss, (x, y))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_zero_rows_are_finite(self, dtype):
        x = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
        y = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
        value = orthogonal_loss(x, y)
        value.backward()
        assert value.item() == 0.0
        assert value.dtype == torch.float32
        assert x.grad.isfinite().all()
        assert y.grad.isfinite().all()

    def test_pads(self):
        pads_change_nothing(lambda x, y, mask: orthogonal_loss(x, y, mask=mask), 3, 4, 5)

    def test_a_penalty_that_is_not_zero_at_zero_does_not_count_pads(self):
        x, mask = torch.tensor([[[1.0], [NAN]]]), torch.tensor([[True, False]])
        assert orthogonal_loss(x, x, mask=mask, penalty=lambda c: 1 + c).item() == 2.0

    def test_nothing_real_is_zero(self):
        x = torch.full((2, 3), NAN, requires_grad=True)
        value = orthogonal_loss(x, x, mask=torch.zeros(2, dtype=torch.bool))
        value.backward()
        assert value.item() == 0.0
        assert not x.grad.any()
        assert orthogonal_loss(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0.0

    def test_module_equals_function(self):
        x, mask = ragged(3, 4, 5)
        y = x.flip(-1)
        module = OrthogonalLoss(penalty=torch.square, eps=1e-3)
        expected = orthogonal_loss(x, y, mask=mask, penalty=torch.square, eps=1e-3)
        assert torch.equal(module(x, y, mask=mask), expected)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("x", "y", "options", "error", "message"),
        [
            (torch.zeros(2, 3), torch.zeros(2, 4), {}, ValueError, "y must have the shape of x"),
            (torch.zeros(2, 3).int(), torch.zeros(2, 3), {}, TypeError, "x must be floating"),
            (torch.zeros(2, 3), torch.zeros(2, 3), {"eps": 0.0}, ValueError, "eps must be finite"),
            (
                torch.zeros(2, 3),
                torch.zeros(2, 3),
                {"mask": torch.ones(3, dtype=torch.bool)},
                ValueError,
                r"mask must have shape \(2,\), got \(3,\)",
            ),
        ],
    )
    def test_bad_input(self, x, y, options, error, message):
        with pytest.raises(error, match=message):
            orthogonal_loss(x, y, **options)


class TestReconstruction:
    @thorough
    @given(reconstructions())
    def test_known_distances(self, case):
        output, target, expected = case
        assert reconstruction_loss(output, target).item() == pytest.approx(expected, rel=1e-12)

    @every_dtype
    def test_precision(self, dtype):
        (x, mask), (y, _) = ragged(3, 4, 5), ragged(3, 4, 5, seed=0)
        agree_in(dtype, reconstruction_loss, x, 0.5 * y, mask=mask)

    @pytest.mark.parametrize("outlier", [1e30, -1e30, 1e38])
    @pytest.mark.parametrize("traced", [False, True])
    def test_squares_that_overflow(self, outlier, traced):
        x = torch.tensor([[0.6 * outlier, 0.8 * outlier], [3.0, 4.0], [1e-10, 0.0]])
        gradient = torch.func.grad_and_value if traced else eager_gradient_and_value
        slope, value = gradient(lambda x: reconstruction_loss(x, torch.zeros(3, 2)))(x)
        assert value.item() == pytest.approx(abs(outlier) / 3)
        expected = x.sign() * torch.tensor([[0.6, 0.8], [0.6, 0.8], [1.0, 0.0]]) / 3
        torch.testing.assert_close(slope, expected)

    def test_a_sum_that_overflows(self):
        x = torch.full((4, 1), 3e38)
        assert reconstruction_loss(x, torch.zeros(4, 1)).item() == pytest.approx(3e38)

    def test_infinite_input_is_not_hidden(self):
        x = torch.tensor([[INF, 0.0], [NAN, 0.0]])
        assert reconstruction_loss(x[:1], torch.zeros(1, 2)).isinf()
        assert reconstruction_loss(x[1:], torch.zeros(1, 2)).isnan()

    @thorough
    @given(shapes, seeds)
    def test_equals_numpy(self, shape, seed):
        x, mask = ragged(*shape, seed=seed, dtype=torch.float64)
        y, _ = ragged(*shape, seed=seed, dtype=torch.float64)
        y = 0.5 * y
        expected = np.linalg.norm((x - y)[mask].numpy(), axis=-1).mean()
        assert reconstruction_loss(x, y, mask=mask).item() == pytest.approx(expected)

    def test_exact_case(self):
        output, target = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
        assert reconstruction_loss(output, target).item() == 7.5

    def test_gradient_and_its_absence_at_a_perfect_copy(self):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
        assert gradcheck(reconstruction_loss, (x, y))
        x = torch.ones(2, 3, requires_grad=True)
        reconstruction_loss(x, torch.ones(2, 3)).backward()
        assert x.grad.tolist() == torch.zeros(2, 3).tolist()

    def test_low_precision_is_summed_in_float32(self):
        x = torch.full((1, 4), 300.0, dtype=torch.float16)
        assert reconstruction_loss(x, torch.zeros_like(x)).item() == 600.0

    def test_pads(self):
        pads_change_nothing(lambda x, y, mask: reconstruction_loss(x, y, mask=mask), 3, 4, 5)

    def test_nothing_real_is_zero(self):
        x = torch.full((2, 3), NAN)
        assert reconstruction_loss(x, x, mask=torch.zeros(2, dtype=torch.bool)).item() == 0.0

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="target must have the shape of output"):
            reconstruction_loss(torch.zeros(2, 3), torch.zeros(3, 3))
        with pytest.raises(TypeError, match="target must be floating point"):
            reconstruction_loss(torch.zeros(2, 3), torch.zeros(2, 3).int())


class TestCrossModal:
    @thorough
    @given(shifted_logits())
    def test_known_shifts(self, case):
        logits, edges, expected = case
        assert cross_modal_loss(logits, edges).item() == pytest.approx(expected, abs=1e-12)

    @every_dtype
    def test_precision(self, dtype):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 3, 4, generator=generator)
        edges = torch.rand(2, 3, 3, generator=generator)
        agree_in(dtype, cross_modal_loss, logits, edges)

    @thorough
    @given(shapes, seeds)
    def test_equals_scipy(self, shape, seed):
        b, m, k = shape
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(b, m, k, generator=generator, dtype=torch.float64)
        edges = torch.rand(b, m, m, generator=generator, dtype=torch.float64)
        distances = np.stack([cdist(row, row, "cityblock") for row in logits.numpy()])
        expected = (edges.numpy() * distances).sum((1, 2)).mean()
        assert cross_modal_loss(logits, edges).item() == pytest.approx(expected)

    def test_only_the_learner_moves(self):
        logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]], requires_grad=True)
        # Modality 1 learns from modality 0.
        edges = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], requires_grad=True)
        value = cross_modal_loss(logits, edges)
        value.backward()
        assert value.item() == 3.0
        assert logits.grad.tolist() == [[[0.0, 0.0], [1.0, -1.0]]]
        assert edges.grad.tolist() == [[[0.0, 3.0], [3.0, 0.0]]]

    def test_absent_modalities_do_not_matter_even_as_nan(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 3, 4, generator=generator)
        edges = torch.rand(2, 3, 3, generator=generator)
        present = torch.tensor([[True, True, False], [False, False, True]])
        gone = ~present[..., None]
        pairs = present[:, :, None] & present[:, None, :]
        results = []
        for fill in (0.0, NAN):
            a = logits.masked_fill(gone, fill).requires_grad_()
            e = edges.masked_fill(~pairs, fill).requires_grad_()
            value = cross_modal_loss(a, e, present=present)
            value.backward()
            results.append([value.detach(), a.grad, e.grad])
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)
        alone = (edges[0, :2, :2] * (logits[0, :2, None] - logits[0, None, :2]).abs().sum(-1)).sum()
        # The mean is over the batch: the second sample adds 0 and counts.
        torch.testing.assert_close(results[0][0], alone / 2)

    def test_gradient(self):
        generator = torch.Generator().manual_seed(0)
        edges = torch.rand(2, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
        logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
        assert gradcheck(lambda e: cross_modal_loss(logits, e), edges)

    def test_equal_logits_are_finite(self):
        logits = torch.zeros(1, 3, 2, requires_grad=True)
        cross_modal_loss(logits, torch.ones(1, 3, 3)).backward()
        assert not logits.grad.any()

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"edges must have shape \(2, 3, 3\), got \(2, 3, 2\)"):
            cross_modal_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 2))
        with pytest.raises(ValueError, match="logits must have 3 axes"):
            cross_modal_loss(torch.zeros(2, 3), torch.zeros(2, 3, 3))
        with pytest.raises(TypeError, match="present must be a bool tensor"):
            cross_modal_loss(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2), present=torch.ones(1, 2))


class TestEdgeEntropy:
    @every_dtype
    def test_precision(self, dtype):
        edges = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
        agree_in(dtype, edge_entropy, edges / edges.sum((1, 2), keepdim=True))

    @thorough
    @given(st.integers(2, 5), seeds)
    def test_equals_scipy(self, m, seed):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(3, m, m, generator=generator, dtype=torch.float64)
        weights = weights * (1 - torch.eye(m, dtype=torch.float64))
        weights = weights / weights.sum((1, 2), keepdim=True)
        expected = [entropy(row) for row in weights.flatten(1).numpy()]
        np.testing.assert_allclose(edge_entropy(weights).numpy(), expected)

    def test_gradient_at_zero_weight_is_finite(self):
        edges = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0] * 2] * 2], requires_grad=True)
        value = edge_entropy(edges)
        value.sum().backward()
        assert value.tolist() == [0.0, 0.0]
        assert edges.grad.isfinite().all()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (cmd_loss, [(4, 3), (5, 3)]),
        (orthogonal_loss, [(4, 3), (4, 3)]),
        (reconstruction_loss, [(4, 3), (4, 3)]),
        (cross_modal_loss, [(2, 3, 4), (2, 3, 3)]),
    ],
)
def test_one_input_in_float64_is_enough_for_it(loss, shapes, first):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(*shape, generator=generator) for shape in shapes]
    inputs[not first] = inputs[not first].double()
    expected = loss(*(x.double() for x in inputs))
    torch.testing.assert_close(loss(*inputs), expected, rtol=1e-6, atol=1e-6)
    assert loss(*inputs).dtype == torch.float64


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (CMDLoss(n_moments=3, span=2), "CMDLoss(n_moments=3, span=2, group=None)"),
        (OrthogonalLoss(penalty=torch.square), "OrthogonalLoss(penalty=square, eps=1e-08)"),
    ],
)
def test_repr_shows_the_options(module, expected):
    assert repr(module) == expected


@pytest.mark.usefixtures("unchecked")
def test_compiles_to_one_graph():
    x, mask = ragged(3, 4, 5)
    y = x + 1
    edges = torch.rand(3, 4, 4)

    def whole(x, y):
        similarity = orthogonal_loss(x, y, mask=mask) + reconstruction_loss(x, y, mask=mask)
        return similarity + cross_modal_loss(x, edges, present=mask) + edge_entropy(edges).sum()

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), whole(x, y))


HOMES = {"cmd", "cross_modal", "orthogonal", "reconstruction"}


# What one import loaded, without starting Python and PyTorch for each anew.
LOADED = """
import importlib, sys
for home in sys.argv[1:]:
    getattr(importlib.import_module("tdmer.losses"), f"{home}_loss")
    loaded = [name for name in sys.modules if name.split(".")[0] == "tdmer"]
    print(*loaded)
    for name in loaded:
        del sys.modules[name]
"""


def test_one_loss_loads_no_other():
    command = [sys.executable, "-c", LOADED, *sorted(HOMES)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    for home, line in zip(sorted(HOMES), run.stdout.splitlines(), strict=True):
        loaded = set(line.split())
        assert len(loaded) <= 8, loaded
        assert loaded & {f"tdmer.losses.{other}" for other in HOMES} == {f"tdmer.losses.{home}"}


def test_every_public_name_resolves():
    assert all(getattr(losses, name).__name__ == name for name in losses.__all__)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match=r"module 'tdmer.losses' has no attribute 'mmd_loss'"):
        losses.mmd_loss  # noqa: B018
    assert set(dir(losses)) == set(losses.__all__)
