"""Dropout that is cheap to draw on a CPU: what torch.nn does, in distribution and gradient."""

import pytest
import torch
from torch import nn

from tdmer.layers._cpu import Dropout, ReLUDropout


class TestDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_keeps_the_mean_and_drops_the_share(self, p, dtype):
        torch.manual_seed(0)
        x = torch.ones(500, 401, dtype=dtype)
        out = Dropout(p)(x)
        assert out.dtype == dtype
        assert len(out.unique()) == 2
        dropped = (out == 0).double()
        # Five standard deviations of the mean of 200 500 draws.
        assert abs(dropped.mean().item() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
        rounding = 2e-2 if dtype == torch.bfloat16 else 1e-4
        assert out.max().item() == pytest.approx(1 / (1 - p), rel=rounding)
        # Entries are independent: of neighbours both are dropped in p^2 of all places.
        for both in (dropped[:, 1:] * dropped[:, :-1], dropped[1:] * dropped[:-1]):
            assert both.mean().item() == pytest.approx(p * p, abs=0.01)

    def test_the_gradient_has_the_mask_of_the_output(self):
        torch.manual_seed(0)
        x = torch.ones(30, 7, requires_grad=True)
        out = Dropout(0.5)(x)
        out.sum().backward()
        assert torch.equal(x.grad, out.detach())

    def test_the_seed_decides(self):
        results = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            results.append(Dropout(0.5)(torch.ones(9, 9)))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_nothing_to_drop(self):
        x = torch.randn(4, 3)
        assert Dropout(0.0)(x) is x
        assert Dropout(0.5).eval()(x) is x
        assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
        assert Dropout(1 - 1e-9)(x).isfinite().all()  # rounds to 1, which would divide by 0

    def test_the_scale_is_that_of_the_rounded_probability(self):
        torch.manual_seed(0)
        out = Dropout(0.99999)(torch.ones(1000, 1000))  # 65535 of 65536 levels
        assert out.unique().tolist() == [0.0, 65536.0]

    def test_any_layout(self):
        torch.manual_seed(0)
        x = torch.ones(40, 6).t().requires_grad_()
        assert set(Dropout(0.5)(x).unique().tolist()) == {0.0, 2.0}

    @pytest.mark.usefixtures("unchecked")
    def test_compiled(self):
        torch.manual_seed(0)
        compiled = torch.compile(Dropout(0.5), fullgraph=True, backend="aot_eager")
        assert set(compiled(torch.ones(20, 20)).unique().tolist()) == {0.0, 2.0}

    @pytest.mark.usefixtures("unchecked")
    def test_bad_probability(self):
        with pytest.raises(ValueError, match=r"p must be in \[0.0, 1.0\), got 1.0"):
            Dropout(1.0)


class TestReLUDropout:
    @pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_equals_one_after_the_other(self, p, training, dtype):
        torch.manual_seed(0)
        x = torch.randn(30, 41, dtype=dtype).t().requires_grad_()
        weights = torch.randn(41, 30, dtype=dtype)
        found = []
        for layer in (ReLUDropout(p), nn.Sequential(nn.ReLU(), Dropout(p))):
            torch.manual_seed(1)
            out = layer.train(training)(x)
            (grad,) = torch.autograd.grad((out * weights).sum(), x)
            found.append((out, grad))
        for one, other in zip(*found, strict=True):
            assert one.dtype == dtype
            assert torch.equal(one, other)

    def test_a_second_gradient(self):
        layer = ReLUDropout(0.5).double()
        x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

        def drawn_alike(x):
            torch.manual_seed(0)
            return layer(x).square()

        assert torch.autograd.gradcheck(drawn_alike, x)
        assert torch.autograd.gradgradcheck(drawn_alike, x)

    def test_one_tensor_is_kept(self):
        kept = []
        x = torch.randn(20, 30, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = ReLUDropout(0.5)(x)
            out @ torch.randn(30, 3, requires_grad=True)
        assert {t.data_ptr() for t in kept if t.shape == x.shape} == {out.data_ptr()}

    def test_nan_is_not_hidden(self):
        torch.manual_seed(0)
        assert ReLUDropout(0.5)(torch.full((8, 8), float("nan"))).isnan().all()

    @pytest.mark.usefixtures("unchecked")
    def test_compiled_and_per_sample(self):
        torch.manual_seed(0)
        layer = ReLUDropout(0.5)
        x = torch.ones(20, 20)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        mapped = torch.func.vmap(layer, randomness="different")
        for out in (compiled(x), mapped(x)):
            assert set(out.unique().tolist()) == {0.0, 2.0}
