"""Cross-attention as it runs fast on a CPU: the same as the plain formula, however it is run."""

import numpy as np
import pytest
import torch
from torch import nn

from tdmer.layers import (
    CrossAttention,
    CrossModalBlock,
    CrossModalEncoder,
    cross_attention,
    sinusoidal_positions,
)
from tdmer.masks import zero_pads
from tests.ragged import ragged, with_pads

NAN, INF = float("nan"), float("inf")


@pytest.fixture(
    params=[(0, 16), (2**20, 16), (2**20, 1)],
    ids=["by the kernel", "few keys", "few scores"],
    autouse=True,
)
def path(request, monkeypatch):
    """Take each of the ways in which scores are computed."""
    few_scores, vector = request.param
    monkeypatch.setattr(cross_attention, "_FEW_SCORES", few_scores)
    monkeypatch.setattr(cross_attention, "_VECTOR", vector)


def gradients(module):
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    return found


def same_weights(width, heads):
    torch.manual_seed(0)
    ours = CrossAttention(["s"], width, heads, positions=False)
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    inputs = [ours.query["s"], ours.key["s"], ours.value["s"]]
    with torch.no_grad():
        for linear in (*inputs, ours.out["s"]):
            linear.bias.normal_()
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in inputs]))
        theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in inputs]))
        theirs.out_proj.load_state_dict(ours.out["s"].state_dict())
    return ours, theirs


class TestCrossAttention:
    def test_equals_torch_multihead_attention(self):
        ours, theirs = same_weights(8, 2)
        target = torch.randn(3, 5, 8)
        source, mask = ragged(3, 7, 8)
        found = ours(target, {"s": source}, {"s": mask})
        clean = zero_pads(source, mask)
        expected, _ = theirs(target, clean, clean, key_padding_mask=~mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        unmasked, _ = theirs(target, clean, clean)
        torch.testing.assert_close(ours(target, {"s": clean}), unmasked, atol=1e-5, rtol=1e-5)

    def test_positions_go_to_queries_and_keys_only(self):
        ours, theirs = same_weights(8, 2)
        ours.positions = True
        target, source = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
        expected, _ = theirs(
            target + sinusoidal_positions(5, 8), source + sinusoidal_positions(7, 8), source
        )
        torch.testing.assert_close(ours(target, {"s": source}), expected, atol=1e-5, rtol=1e-5)

    def test_several_sources_are_the_sum_of_single_ones(self):
        torch.manual_seed(0)
        both = CrossAttention(["a", "b"], 8, 2)
        target = torch.randn(2, 3, 8)
        sources = {"a": torch.randn(2, 4, 8), "b": torch.randn(2, 6, 8)}
        total = both(target, sources)
        parts = []
        for name, source in sources.items():
            one = CrossAttention([name], 8, 2)
            state = {key: x for key, x in both.state_dict().items() if f".{name}." in key}
            one.load_state_dict(state)
            parts.append(one(target, {name: source}))
        torch.testing.assert_close(total, sum(parts))

    def test_weights_belong_to_names(self):
        torch.manual_seed(0)
        names = ["c", "a", "b"]
        first, second = (CrossAttention(order, 8, 2) for order in (names, sorted(names)))
        second.load_state_dict(first.state_dict())
        target, sources = torch.randn(2, 3, 8), {name: torch.randn(2, 4, 8) for name in names}
        again = dict(sorted(sources.items()))
        assert torch.equal(first(target, sources), second(target, again))

    def test_a_wholly_masked_source_adds_nothing(self):
        torch.manual_seed(0)
        attention = CrossAttention(["a", "b"], 8, 2)
        target, a = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
        outputs = []
        for fill in (NAN, 5.0):
            b = torch.full((2, 6, 8), fill)
            masks = {"b": torch.zeros(2, 6, dtype=torch.bool)}
            outputs.append(attention(target, {"a": a, "b": b}, masks))
        assert torch.equal(*outputs)
        assert outputs[0].isfinite().all()
        none = {"a": torch.zeros(2, 4, dtype=torch.bool)} | masks
        empty = attention(target, {"a": a, "b": b}, none)
        assert not empty.any()
        empty.sum().backward()
        assert all(g.isfinite().all() for g in gradients(attention))

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="width must be a multiple of heads, got 8 and 3"):
            CrossAttention(["a"], 8, 3)
        attention = CrossAttention(["a"], 8, 2)
        with pytest.raises(ValueError, match=r"sources must be \['a'\], got \['b'\]"):
            attention(torch.zeros(1, 2, 8), {"b": torch.zeros(1, 2, 8)})
        with pytest.raises(ValueError, match=r"sources\['a'\] must have 8 features"):
            attention(torch.zeros(1, 2, 8), {"a": torch.zeros(1, 2, 4)})

    @pytest.mark.parametrize(("length", "width"), [(1, 2), (9, 6), (4, 5)])
    def test_positions_equal_the_paper(self, length, width):
        place, index = np.arange(length)[:, None], np.arange((width + 1) // 2)
        angle = place / 10000 ** (2 * index / width)
        expected = np.concatenate([np.sin(angle), np.cos(angle)], 1)[:, :width]
        np.testing.assert_allclose(sinusoidal_positions(length, width), expected, atol=1e-6)
        precise = sinusoidal_positions(length, width, dtype=torch.float64)
        np.testing.assert_allclose(precise, expected, rtol=1e-12)

    def test_positions_are_made_where_they_are_used(self):
        with torch.device("meta"):
            attention = CrossAttention(["s"], 8, 2)
        target, source = (torch.empty(1, t, 8, device="meta") for t in (2, 3))
        assert attention(target, {"s": source}).device.type == "meta"


class TestCrossModalBlock:
    def test_pads_change_nothing(self):
        torch.manual_seed(0)
        block = CrossModalBlock(["s"], 8, 2)
        (target, tm), (source, sm) = ragged(3, 5, 8), ragged(3, 7, 8, seed=1)
        found = []
        for steps, fill in ((0, 0.0), (4, NAN), (2, INF)):
            (t, t_mask), (s, s_mask) = (
                with_pads(target, tm, steps, fill),
                with_pads(source, sm, steps, fill),
            )
            out = block(t, {"s": s}, t_mask, {"s": s_mask})
            assert not out[~t_mask].any()
            out.square().sum().backward()
            found.append([out[:, :5], *gradients(block)])
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)

    def test_is_residual(self):
        block = CrossModalBlock(["s"], 8, 2)
        with torch.no_grad():
            for layer in (block.attention.out["s"], block.feed_forward[-1]):
                layer.weight.zero_()
                layer.bias.zero_()
        target = torch.randn(2, 3, 8)
        assert torch.equal(block(target, {"s": torch.randn(2, 4, 8)}), target)

    def test_the_source_decides(self):
        torch.manual_seed(0)
        block = CrossModalBlock(["s"], 8, 2)
        target = torch.randn(2, 3, 8)
        one, two = (block(target, {"s": torch.randn(2, 4, 8)}) for _ in range(2))
        assert (one - two).abs().max() > 1e-3


class TestCrossModalEncoder:
    @staticmethod
    def inputs():
        (target, tm), (a, am), (b, bm) = (ragged(3, t, 8, seed=t) for t in (5, 7, 4))
        return target, {"a": a, "b": b}, tm, {"a": am, "b": bm}

    def test_blocks_follow_one_another_on_normalised_sources(self):
        torch.manual_seed(0)
        encoder = CrossModalEncoder(["a", "b"], 8, 2, layers=3)
        for norm in encoder.source_norms.values():
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        target, sources, tm, masks = self.inputs()
        normed = {}
        for name, x in sources.items():
            x, norm = zero_pads(x, masks[name]), encoder.source_norms[name]
            x = (x - x.mean(-1, keepdim=True)) / (
                x.var(-1, correction=0, keepdim=True) + 1e-5
            ).sqrt()
            normed[name] = x * norm.weight + norm.bias
        expected = target
        for block in encoder.blocks:
            expected = block(expected, normed, tm, masks)
        found = encoder(target, sources, tm, masks)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_pads_change_nothing(self):
        torch.manual_seed(0)
        encoder = CrossModalEncoder(["a", "b"], 8, 2, layers=2)
        target, sources, tm, masks = self.inputs()
        found = []
        for steps, fill in ((0, 0.0), (4, NAN), (2, INF)):
            encoder.zero_grad()
            t, t_mask = with_pads(target, tm, steps, fill)
            padded = {n: with_pads(x, masks[n], steps, fill) for n, x in sources.items()}
            inputs = {n: x.requires_grad_() for n, (x, _) in padded.items()}
            out = encoder(t, inputs, t_mask, {n: mask for n, (_, mask) in padded.items()})
            assert not out[~t_mask].any()
            out.square().sum().backward()
            reached = [x.grad[:, : sources[n].shape[1]] for n, x in inputs.items()]
            found.append([out[:, :5], *reached, *gradients(encoder)])
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)

    def test_no_layer_has_no_weight_and_changes_nothing(self):
        encoder = CrossModalEncoder(["a", "b"], 8, 2, layers=0)
        target, sources, tm, masks = self.inputs()
        assert not list(encoder.parameters())
        assert torch.equal(encoder(target, sources, tm, masks), zero_pads(target, tm))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("layers", [0, 1])
    def test_bad_input(self, layers):
        encoder = CrossModalEncoder(["a"], 8, 2, layers=layers)
        with pytest.raises(ValueError, match=r"sources must be \['a'\], got \['b'\]"):
            encoder(torch.zeros(1, 2, 8), {"b": torch.zeros(1, 2, 8)})
        with pytest.raises(ValueError, match="sources must hold at least 1 different names"):
            CrossModalEncoder([], 8, 2, layers=layers)


class TestParity:
    # Heads of 5, 16 and 20 features: padded, as they are, padded beyond 16.
    @pytest.mark.parametrize(("width", "heads"), [(10, 2), (32, 2), (20, 1)])
    @pytest.mark.parametrize("real", [0.0, 0.5, 1.0])
    def test_outputs_and_gradients_of_scattered_masks(self, width, heads, real):
        ours, theirs = (module.double() for module in same_weights(width, heads))
        target = torch.randn(4, 6, width, dtype=torch.float64, requires_grad=True)
        source = torch.randn(4, 9, width, dtype=torch.float64, requires_grad=True)
        mask = torch.rand(4, 9) < real
        mask[:, 7] = True
        found = ours(target, {"s": source}, {"s": mask})
        found.square().sum().backward()
        grads = [target.grad, source.grad]
        target.grad = source.grad = None
        expected, _ = theirs(target, source, source, key_padding_mask=~mask, need_weights=False)
        expected.square().sum().backward()
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
        grads += [part["s"].weight.grad for part in (ours.query, ours.key, ours.value)]
        rows = theirs.in_proj_weight.grad.split(width)
        for one, two in zip(grads, [target.grad, source.grad, *rows], strict=True):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)

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
                alone.out[gone].weight.zero_()
                alone.out[gone].bias.zero_()
            torch.testing.assert_close(found[row], alone(target, sources)[row])

    @pytest.mark.parametrize(("keys", "few_scores"), [(15, 0), (16, 2 * 2 * 3 * 16)])
    def test_the_kernel_where_scores_are_many(self, keys, few_scores, monkeypatch):
        monkeypatch.setattr(cross_attention, "_FEW_SCORES", few_scores)
        called = []
        kernel = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *args, **options: called.append(1) or kernel(*args, **options),
        )
        ours, _ = same_weights(8, 2)
        ours(torch.randn(2, 3, 8), {"s": torch.randn(2, keys, 8)})
        assert len(called) == (not few_scores)

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


def test_positions_kept_from_inference_serve_training():
    cross_attention._kept_positions.cache_clear()
    torch.manual_seed(0)
    attention, (target, source) = CrossAttention(["s"], 8, 2), torch.randn(2, 2, 5, 8)
    with torch.inference_mode():
        expected = attention(target, {"s": source})
    found = attention(target, {"s": source})
    assert torch.equal(found, expected)
    found.sum().backward()
    assert not cross_attention._kept_positions(
        5, 8, dtype=target.dtype, device=target.device
    ).is_inference()
    assert attention.key["s"].weight.grad.any()
