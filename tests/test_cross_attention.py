"""Cross-attention as it runs fast on a CPU: the same as the plain formula, however it is run."""

import pytest
import torch
from torch import nn

from tdmer import TDMER
from tdmer.layers import CrossAttention, CrossModalBlock, cross_attention
from tdmer.layers._cpu import Dropout, ReLUDropout
from tdmer.masks import zero_pads
from tests.ragged import ragged


@pytest.fixture(
    params=[(0, 0), (0, 16), (2**20, 0)],
    ids=["by the kernel", "few keys", "few scores"],
    autouse=True,
)
def path(request, monkeypatch):
    few_scores, few_keys = request.param
    monkeypatch.setattr(cross_attention, "_FEW_SCORES", few_scores)
    monkeypatch.setattr(cross_attention, "_FEW_KEYS", few_keys)


def same_weights(width, heads):
    torch.manual_seed(0)
    ours = CrossAttention(["s"], width, heads, positions=False)
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        projection = ours.key_value["s"]
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, projection.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, projection.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    return ours, theirs


class TestParity:
    # Heads of 5, 16 and 20 features: padded, as they are, padded beyond 16.
    @pytest.mark.parametrize(("width", "heads"), [(10, 2), (32, 2), (20, 1)])
    @pytest.mark.parametrize("real", [0.0, 0.5, 1.0])
    def test_outputs_and_gradients_of_scattered_masks(self, width, heads, real):
        ours, theirs = same_weights(width, heads)
        target = torch.randn(4, 6, width, requires_grad=True)
        source = torch.randn(4, 9, width, requires_grad=True)
        mask = torch.rand(4, 9) < real
        mask[:, 7] = True
        found = ours(target, {"s": source}, {"s": mask})
        found.square().sum().backward()
        grads = [target.grad, source.grad]
        target.grad = source.grad = None
        expected, _ = theirs(target, source, source, key_padding_mask=~mask, need_weights=False)
        expected.square().sum().backward()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        grads += [ours.query.weight.grad, ours.key_value["s"].weight.grad]
        rows = theirs.in_proj_weight.grad.split([width, 2 * width])
        for one, two in zip(grads, [target.grad, source.grad, *rows], strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)

    def test_samples_without_a_source_among_others(self):
        ours, theirs = same_weights(8, 2)
        target, source = torch.randn(3, 4, 8), torch.randn(3, 7, 8)
        mask = torch.arange(7) < torch.tensor([3, 0, 5])[:, None]
        found = ours(target, {"s": source}, {"s": mask})
        assert not found[1].any()
        expected, _ = theirs(target, source, source, key_padding_mask=~mask, need_weights=False)
        torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=1e-5)

    def test_a_source_missing_for_some_samples_adds_nothing_to_them(self):
        torch.manual_seed(0)
        attention = CrossAttention(["a", "b"], 8, 2)
        target, sources = torch.randn(2, 4, 8), {n: torch.randn(2, 5, 8) for n in "ab"}
        mask = torch.tensor([[True] * 5, [False] * 5])
        found = attention(target, sources, {"a": ~mask, "b": mask})
        for row, gone in enumerate("ab"):
            alone = CrossAttention(["a", "b"], 8, 2)
            alone.load_state_dict(attention.state_dict())
            with torch.no_grad():
                alone.out.weight[:, slice(0, 8) if gone == "a" else slice(8, 16)] = 0.0
            torch.testing.assert_close(found[row], alone(target, sources)[row])

    @pytest.mark.parametrize(("keys", "few_scores"), [(15, 0), (16, 0), (16, 2 * 2 * 3 * 16)])
    def test_the_kernel_where_keys_and_scores_are_many(self, keys, few_scores, monkeypatch):
        monkeypatch.setattr(cross_attention, "_FEW_KEYS", 16)
        monkeypatch.setattr(cross_attention, "_FEW_SCORES", few_scores)
        called = []
        for name in ("_attend_at_once", "_attend_in_blocks"):
            original = getattr(cross_attention, name)
            monkeypatch.setattr(
                cross_attention,
                name,
                lambda *args, name=name, original=original: called.append(name) or original(*args),
            )
        ours, _ = same_weights(8, 2)
        ours(torch.randn(2, 3, 8), {"s": torch.randn(2, keys, 8)})
        at_once = keys < 16 or few_scores
        assert called == ["_attend_at_once" if at_once else "_attend_in_blocks"]

    def test_no_sample_at_all(self):
        ours, _ = same_weights(8, 2)
        mask = torch.ones(0, 7, dtype=torch.bool)
        assert ours(torch.zeros(0, 4, 8), {"s": torch.zeros(0, 7, 8)}, {"s": mask}).shape == (
            0,
            4,
            8,
        )


@pytest.mark.usefixtures("unchecked")
class TestTraced:
    """Where values may not be read, nothing is cut; the result is the same."""

    @staticmethod
    def block():
        torch.manual_seed(0)
        block = CrossModalBlock(["a", "b"], 10, 2).eval()
        (target, tm), (a, am), (b, bm) = (ragged(4, t, 10, seed=t) for t in (5, 7, 9))
        bm[1] = False
        bm[:, 8] = False
        return block, (target, {"a": a, "b": b}, tm, {"a": am, "b": bm})

    def test_compiled(self):
        block, inputs = self.block()
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        results = []
        for run in (block, compiled):
            block.zero_grad()
            out = run(*inputs)
            out.square().sum().backward()
            results.append([out, *[p.grad for p in block.parameters()]])
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)

    def test_exported_with_other_masks_than_it_runs_on(self):
        block, inputs = self.block()
        whole = [torch.ones_like(inputs[2]), {n: torch.ones_like(m) for n, m in inputs[3].items()}]
        program = torch.export.export(block, (*inputs[:2], *whole)).module()
        torch.testing.assert_close(program(*inputs), block(*inputs), atol=1e-5, rtol=1e-5)

    def test_model_exported_over_lengths(self):
        torch.manual_seed(0)
        model = TDMER({"text": 6, "audio": 4}, 3, width=8, heads=2).eval()
        t, u = torch.export.Dim("t", min=2, max=64), torch.export.Dim("u", min=2, max=64)

        def draw(text, audio):
            parts = (ragged(2, text, 6), ragged(2, audio, 4, seed=1))
            return tuple(
                dict(zip(("text", "audio"), x, strict=True)) for x in zip(*parts, strict=True)
            )

        shapes = {name: {1: dim} for name, dim in (("text", t), ("audio", u))}
        program = torch.export.export(model, draw(5, 9), dynamic_shapes=(shapes, shapes)).module()
        inputs = draw(12, 3)
        torch.testing.assert_close(program(*inputs).logits, model(*inputs).logits)

    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    def test_mapped_over_samples(self):
        block, (target, sources, tm, masks) = self.block()

        def one(target, a, am):
            sources = {"a": a[None], "b": a[None]}
            return block(target[None], sources, None, {"a": am[None], "b": am[None]})[0]

        clean = zero_pads(target, tm)
        mapped = torch.vmap(one)(clean, sources["a"], masks["a"])
        rows = [one(*row) for row in zip(clean, sources["a"], masks["a"], strict=True)]
        torch.testing.assert_close(mapped, torch.stack(rows), atol=1e-5, rtol=1e-5)


class TestPrecision:
    def test_autocast_stays_near_and_finite(self):
        torch.manual_seed(0)
        block = CrossModalBlock(["s"], 10, 2, dropout=0.5)
        (target, tm), (source, sm) = ragged(3, 5, 10), ragged(3, 7, 10, seed=1)
        block.eval()
        exact = block(target, {"s": source}, tm, {"s": sm})
        with torch.autocast("cpu", torch.bfloat16):
            near = block(target, {"s": source}, tm, {"s": sm})
        torch.testing.assert_close(near.float(), exact, atol=0.1, rtol=0.05)
        block.train()
        with torch.autocast("cpu", torch.bfloat16):
            block(target, {"s": source}, tm, {"s": sm}).float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in block.parameters())

    def test_gradcheck(self):
        torch.manual_seed(0)
        attention = CrossAttention(["s"], 4, 2).double()
        mask = torch.tensor([[True, False, True], [False, False, False]])
        inputs = [torch.randn(2, t, 4, dtype=torch.float64, requires_grad=True) for t in (2, 3)]
        torch.autograd.gradcheck(lambda t, s: attention(t, {"s": s}, {"s": mask}), inputs)


@pytest.mark.usefixtures("unchecked")
def test_positions_kept_from_elsewhere_serve_training():
    cross_attention._kept_positions.cache_clear()
    attention = CrossAttention(["s"], 8, 2)
    target, source = torch.randn(2, 5, 8), {"s": torch.randn(2, 6, 8)}
    with torch.inference_mode(), torch.device("meta"):
        first = attention(target, source)
    out = attention(target, source)
    out.sum().backward()
    assert torch.equal(out, first)
    assert cross_attention._kept_positions.cache_info().hits == 2


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
