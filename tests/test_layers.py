"""Normalisation, temporal convolution, decoupler and edge weights; what every Module shows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from torch import nn

from tdmer import Sentiment, TDMERLoss
from tdmer.fusion import Confidence, MeanFusion, TCPFusion
from tdmer.layers import (
    CrossAttention,
    CrossModalBlock,
    CrossModalEncoder,
    Decoupler,
    EdgeWeights,
    InputNormalization,
    Recurrent,
    TemporalConv,
    ordered_pairs,
)
from tdmer.losses import orthogonal_loss
from tdmer.masks import masked_mean
from tests.ragged import ragged

NAN, INF = float("nan"), float("inf")


def gradients(module: nn.Module) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    assert found
    return found


class TestInputNormalization:
    def test_equals_scikit_learn_over_several_batches(self):
        batches = [ragged(4, 6, 3, seed=seed) for seed in range(3)]
        norm = InputNormalization(3)
        assert norm.fit(batches) == 0
        scaler = StandardScaler().fit(np.concatenate([x[m].numpy() for x, m in batches]))
        np.testing.assert_allclose(norm.mean.numpy(), scaler.mean_, atol=1e-6)
        np.testing.assert_allclose(norm.std.numpy(), scaler.scale_, rtol=1e-6)
        x, mask = batches[0]
        np.testing.assert_allclose(
            norm(x, mask)[mask].numpy(), scaler.transform(x[mask].numpy()), atol=1e-5
        )

    def test_a_large_mean_costs_no_precision(self):
        x = 1e4 + torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(2, 2, 1)
        norm = InputNormalization(1)
        norm.fit([(x[:1], None), (x[1:], None)])
        assert norm.std.item() == pytest.approx(np.std([0, 1, 2, 3]), rel=1e-6)

    def test_nonfinite_entries_are_counted_and_become_the_mean(self):
        x = torch.tensor([[[1.0, NAN], [INF, 2.0], [3.0, 4.0], [-INF, NAN]]])
        mask = torch.tensor([[True, True, True, False]])
        norm = InputNormalization(2)
        assert norm.fit([(x, mask)]) == 2
        assert norm.mean.tolist() == [2.0, 3.0]
        assert norm(x, mask).tolist() == [[[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0], [0.0, 0.0]]]

    def test_what_overflows_float32_counts_as_infinite(self):
        x = torch.tensor([[[1.0], [1e300], [3.0]]], dtype=torch.float64)
        norm = InputNormalization(1)
        assert norm.fit([(x, None)]) == 1
        assert norm(x).flatten().tolist() == [-1.0, 0.0, 1.0]

    def test_values_far_beyond_those_of_training_are_cut_off(self):
        # Of 1000 training steps one is not 0: a step like it is 31 standard deviations away.
        x = torch.zeros(1, 1000, 1)
        x[0, 0] = 1.0
        norm, open_ended = InputNormalization(1), InputNormalization(1, limit=100.0)
        assert norm(100 * x).max() == 100.0  # not fitted yet
        for each in (norm, open_ended):
            each.fit([(x, None)])
        far = torch.tensor([[[1.0], [-3e38], [3e38], [0.0]]], requires_grad=True)
        assert norm(far).flatten().tolist()[:3] == [5.0, -5.0, 5.0]
        assert open_ended(far)[0, 0].item() == pytest.approx(1000**0.5, rel=1e-3)
        norm(far).sum().backward()
        assert far.grad.isfinite().all()
        copy = InputNormalization(1)
        copy.load_state_dict(norm.state_dict())
        assert torch.equal(copy.half()(far), norm(far))
        with pytest.raises(ValueError, match="limit must be finite and above 0, got 0"):
            InputNormalization(1, limit=0.0)

    def test_constant_features_keep_their_scale(self):
        norm = InputNormalization(2)
        norm.fit([(torch.tensor([[[0.1, 0.0], [0.1, 0.0], [0.1, 0.0]]]), None)])
        assert norm.std.tolist() == [1.0, 1.0]
        torch.testing.assert_close(norm(torch.tensor([[[1.1, 2.0]]])), torch.tensor([[[1.0, 2.0]]]))

    def test_unfitted_leaves_finite_entries_alone(self):
        x = torch.tensor([[[1.5], [NAN]]])
        assert InputNormalization(1)(x).flatten().tolist() == [1.5, 0.0]

    def test_gradient_is_finite_through_nan(self):
        x = torch.tensor([[[1.0], [NAN]]], requires_grad=True)
        InputNormalization(1)(x).sum().backward()
        assert x.grad.flatten().tolist() == [1.0, 0.0]

    def test_statistics_travel_with_the_state(self):
        norm = InputNormalization(1)
        norm.fit([(torch.tensor([[[1.0], [3.0]]]), None)])
        copy = InputNormalization(1)
        copy.load_state_dict(norm.state_dict())
        assert copy(torch.tensor([[[3.0]]])).item() == 1.0

    def test_float64_is_kept_and_float16_does_not_overflow(self):
        norm = InputNormalization(1).double()
        x = torch.tensor([[[1.0], [1.0 + 1e-9]]], dtype=torch.float64)
        norm.fit([(x, None)])
        torch.testing.assert_close(norm(x).flatten(), x.new_tensor([-1.0, 1.0]), rtol=1e-6, atol=0)
        large = torch.tensor([[[5e4], [7e4]]])  # float16 ends at 65504
        norm = InputNormalization(1)
        norm.fit([(large, None)])
        assert norm.half()(large).flatten().tolist() == [-1.0, 1.0]
        norm.std.zero_()
        assert norm(large / 1e4).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision_keeps_a_small_spread(self, dtype):
        small = torch.tensor([[[1e-8], [3e-8]]])  # 0 in float16
        norm = InputNormalization(1)
        norm.fit([(small, None)])
        norm.to(dtype)
        assert norm.mean.dtype == norm.std.dtype == norm(small).dtype == torch.float32
        torch.testing.assert_close(norm(small).flatten(), torch.tensor([-1.0, 1.0]))

    def test_nothing_to_fit_is_an_error(self):
        with pytest.raises(ValueError, match="batches must hold at least one real, finite entry"):
            InputNormalization(1).fit([(torch.tensor([[[NAN]]]), None)])


class TestTemporalConv:
    @pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
    def test_equals_conv1d_on_each_sequence_alone(self, kernel_size):
        torch.manual_seed(0)
        conv = TemporalConv(3, 4, kernel_size=kernel_size)
        x, mask = ragged(4, 6, 3)
        out = conv(x, mask)
        for row in range(4):
            alone = x[row, mask[row]].T[None]
            left, right = (kernel_size - 1) // 2, kernel_size // 2
            expected = conv.conv(nn.functional.pad(alone, (left, right)))[0].T
            torch.testing.assert_close(out[row, mask[row]], expected)
        assert not out[~mask].any()

    def test_dropout_drops_features_of_whole_sequences_in_training_only(self):
        torch.manual_seed(0)
        conv = TemporalConv(50, 50, kernel_size=1, dropout=0.5)
        with torch.no_grad():
            conv.conv.weight.copy_(torch.eye(50)[:, :, None])
            conv.conv.bias.zero_()
        x = torch.ones(2, 6, 50)
        out = conv(x)
        assert torch.equal(out, out[:, :1].expand(2, 6, 50))  # the same features in every step
        assert not torch.equal(out[0], out[1])
        assert set(out.unique().tolist()) == {0.0, 2.0}
        assert torch.equal(conv.eval()(x), x)

    def test_output_dropout_drops_outputs_of_whole_sequences_in_training_only(self):
        torch.manual_seed(0)
        conv = TemporalConv(3, 200, kernel_size=1, output_dropout=0.5)
        x = torch.randn(2, 6, 3)
        out, whole = conv(x), conv.eval()(x)
        kept = out != 0
        assert torch.equal(kept, kept[:, :1].expand_as(kept))  # the same features in every step
        assert not torch.equal(kept[0], kept[1])
        assert 0.3 < kept.float().mean() < 0.7
        torch.testing.assert_close(out, 2 * whole * kept)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_options(self):
        with pytest.raises(ValueError, match=r"output_dropout must be in \[0.0, 1.0\), got 1.0"):
            TemporalConv(3, 4, output_dropout=1.0)
        with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
            TemporalConv(3, 4, kernel_size=0)
        with pytest.raises(ValueError, match=r"dropout must be in \[0.0, 1.0\), got 1.0"):
            TemporalConv(3, 4, dropout=1.0)
        with pytest.raises(ValueError, match="x must have 3 features on its last axis"):
            TemporalConv(3, 4)(torch.zeros(1, 2, 5))


class TestRecurrent:
    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_equals_the_lstm_on_each_sequence_alone(self, bidirectional):
        torch.manual_seed(0)
        net = Recurrent(3, 4, bidirectional=bidirectional)
        # Pads anywhere, and a sequence of nothing else.
        mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
        x = torch.randn(3, 5, 3).masked_fill(~mask.unsqueeze(2), float("nan")).requires_grad_()
        sequence, last = net(x, mask)
        for i in (0, 1):
            alone, (state, _) = net.lstm(x[i, mask[i]])
            torch.testing.assert_close(sequence[i, mask[i]], alone)
            torch.testing.assert_close(last[i], state.flatten())
        assert not sequence[~mask].any()
        assert not last[2].any()
        (sequence.sum() + last.sum()).backward()
        assert x.grad.isfinite().all()
        assert not x.grad[~mask].any()

    def test_without_a_mask_every_step_is_real(self):
        torch.manual_seed(0)
        net, x = Recurrent(3, 4, bidirectional=True), torch.randn(2, 5, 3)
        for one, other in zip(net(x), net(x, torch.ones(2, 5).bool()), strict=True):
            torch.testing.assert_close(one, other)


class TestDecoupler:
    def test_parts_are_what_the_equations_say(self):
        torch.manual_seed(0)
        decoupler = Decoupler(["a", "b"], 4)
        x, mask = ragged(3, 5, 4)
        parts = decoupler({"a": x, "b": x}, {"a": mask, "b": mask})
        # One common encoder: equal inputs, equal common features; private encoders differ.
        assert torch.equal(parts.common["a"], parts.common["b"])
        assert not torch.allclose(parts.private["a"], parts.private["b"])
        real = x[mask]
        for encoder, found, end in (
            (decoupler.common_encoder, parts.common["a"], torch.sigmoid),
            (decoupler.private_encoders["a"], parts.private["a"], torch.tanh),
        ):
            hidden, last = encoder[0], encoder[2]
            expected = (real @ hidden.weight.T + hidden.bias).clamp(min=0)
            expected = end(expected @ last.weight.T + last.bias)
            torch.testing.assert_close(found[mask], expected)
        both = torch.cat([parts.common["b"][mask], parts.private["b"][mask]], -1)
        decoder = decoupler.decoders["b"]
        torch.testing.assert_close(
            parts.reconstructed["b"][mask], both @ decoder.weight.T + decoder.bias
        )
        for kind in parts:
            assert not kind["a"][~mask].any()

    @pytest.mark.parametrize(("activation", "low"), [(nn.Sigmoid, 0.0), (nn.Tanh, -1.0)])
    def test_features_are_bounded(self, activation, low):
        decoupler = Decoupler(["a"], 4, activation=activation)
        parts = decoupler({"a": 1e3 * torch.randn(9, 5, 4)})
        assert low <= parts.common["a"].min() < parts.common["a"].max() <= 1.0
        assert -1.0 <= parts.private["a"].min() < 0.0 < parts.private["a"].max() <= 1.0

    def test_private_features_can_be_orthogonal(self):
        # What sigmoid gives is positive throughout, and so is every cosine of it.
        decoupler = Decoupler(["a", "b"], 4)
        for name, signs in (("a", [1.0, 1.0, 1.0, 1.0]), ("b", [1.0, -1.0, 1.0, -1.0])):
            last = decoupler.private_encoders[name][2]
            with torch.no_grad():
                last.weight.zero_()
                last.bias.copy_(torch.tensor(signs))
        x = torch.randn(3, 5, 4)
        private = decoupler({"a": x, "b": x}).private
        assert orthogonal_loss(private["a"], private["b"]).item() == 0.0

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("names", "error", "message"),
        [
            ([], ValueError, "at least 1 different names"),
            (["a", "a"], ValueError, "at least 1 different names"),
            ("ab", TypeError, "sequence of strings"),
            (["a.b"], ValueError, "hold a dot"),
            (["values"], ValueError, "attribute of torch.nn.ModuleDict"),
        ],
    )
    def test_bad_names(self, names, error, message):
        with pytest.raises(error, match=message):
            Decoupler(names, 4)


class TestEdgeWeights:
    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 2**20))
    def test_a_softmax_over_the_present_ordered_pairs(self, b, m, seed):
        torch.manual_seed(seed)
        edges = EdgeWeights(4, 3)
        pooled, logits = torch.randn(b, m, 4), torch.randn(b, m, 3)
        present = torch.rand(b, m) < 0.7
        weights = edges(pooled, logits, present)
        z = torch.cat([logits, pooled], -1)
        layer = torch.cat([edges.source.weight, edges.target.weight], 1)[0]
        for row in range(b):
            pairs = [
                (p, q)
                for p in range(m)
                for q in range(m)
                if p != q and present[row, p] and present[row, q]
            ]
            expected = torch.zeros(m, m)
            if pairs:
                scores = torch.stack([layer @ torch.cat([z[row, p], z[row, q]]) for p, q in pairs])
                for (p, q), value in zip(pairs, scores.softmax(0), strict=True):
                    expected[p, q] = value
            torch.testing.assert_close(weights[row], expected, atol=1e-5, rtol=1e-4)

    def test_absent_modalities_do_not_matter_even_as_nan(self):
        torch.manual_seed(0)
        edges = EdgeWeights(4, 3)
        pooled, logits = torch.randn(2, 3, 4), torch.randn(2, 3, 3)
        present = torch.tensor([[True, True, False], [True, False, False]])
        results = []
        for fill in (0.0, NAN):
            gone = ~present[..., None]
            out = edges(pooled.masked_fill(gone, fill), logits.masked_fill(gone, fill), present)
            out.square().sum().backward()
            results.append([out, *gradients(edges)])
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)
            assert one.isfinite().all()
        assert results[0][0].sum((1, 2)).tolist() == [1.0, 0.0]

    def test_ordered_pairs_of_a_sample(self):
        pairs = ordered_pairs(torch.tensor([[True, False, True]]))
        assert pairs.nonzero().tolist() == [[0, 0, 2], [0, 2, 0]]


@pytest.mark.usefixtures("unchecked")
def test_compiles_to_one_graph():
    torch.manual_seed(0)
    block, edges = CrossModalBlock(["s"], 8, 2), EdgeWeights(8, 3)
    (target, tm), (source, sm) = ragged(3, 5, 8), ragged(3, 7, 8, seed=1)

    def whole(target, source):
        out = block(target, {"s": source}, tm, {"s": sm})
        pooled = torch.stack([masked_mean(out, tm), masked_mean(source, sm)], 1)
        return edges(pooled, pooled[..., :3])

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(target, source), whole(target, source))


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (InputNormalization(7, limit=4.0), ["features=7", "limit=4"]),
        (TemporalConv(7, 4, kernel_size=5, dropout=0.25, output_dropout=0.75),
         ["7, 4, kernel_size=(5,)", "p=0.25", "p=0.75"]),
        (Decoupler(["text"], 4, activation=nn.Tanh), ["(text)", "Tanh()", "out_features=4"]),
        (EdgeWeights(5, 2), ["in_features=7"]),
        (CrossAttention(["text"], 8, 4, positions=False),
         ["(text)", "width=8, heads=4, positions=False"]),
        (CrossModalBlock(["text"], 8, 2, dropout=0.25), ["heads=2, positions=True", "p=0.25"]),
        (CrossModalEncoder(["text"], 8, 2, layers=3), ["(0-2): 3 x CrossModalBlock"]),
        (Confidence(3, 8, dropout=0.25), ["branches=3, width=8", "p=0.25"]),
        (TCPFusion(["text"], 8, dropout=0.25), ["branches=['text'], width=8", "p=0.25"]),
        (MeanFusion(["text"], 8), ["branches=['text'], width=8"]),
        (TDMERLoss(Sentiment((0, 1)), beta=0.5, epsilon=0.75, without=["con"], entropy_weight=0.25,
                   n_moments=3, samples="steps", penalty=torch.square),
         ["con: 0,", "cp: 0.5", "own: 5", "dc: 0.75", "entropy_weight=0.25", "n_moments=3",
          "samples='steps'", "penalty=square", "values=[0.0, 1.0]"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_a_module_shows_its_options(module, shown):
    for part in shown:
        assert part in repr(module)
