"""True class probability, the fusion and its loss (Eqs. 10-12)."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import gmean
from torch.autograd import gradcheck

from tdmer.fusion import (
    Confidence,
    MeanFusion,
    TCPFusion,
    add_context,
    confidence_loss,
    tcp_loss,
    true_class_probability,
)
from tests import oracles

NAN = float("nan")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestTrueClassProbability:
    def test_equals_scipy(self):
        logits, target = random(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
        expected = softmax(logits.numpy(), axis=1)[range(6), target]
        np.testing.assert_allclose(true_class_probability(logits, target), expected, rtol=1e-5)

    def test_a_one_hot_distribution_is_an_index(self):
        logits, target = random(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
        one_hot = torch.nn.functional.one_hot(target, 4).float()
        torch.testing.assert_close(
            true_class_probability(logits, one_hot), true_class_probability(logits, target)
        )

    def test_extreme_logits_stay_finite(self):
        logits = torch.tensor([[6e4, -6e4]], dtype=torch.float16)
        tcp = true_class_probability(logits, torch.tensor([1]))
        assert tcp.tolist() == [0.0]
        assert tcp.dtype == torch.float32

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"target must have shape \(2,\), got \(3,\)"):
            true_class_probability(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="target must have the shape of logits"):
            true_class_probability(torch.zeros(2, 4), torch.zeros(2, 3))
        with pytest.raises(ValueError, match="logits must have 2 axes"):
            true_class_probability(torch.zeros(4), torch.zeros((), dtype=torch.int64))


class TestConfidenceLoss:
    def test_equals_mse(self):
        w, tcp = torch.tensor([0.2, 0.9, 0.4]), torch.tensor([0.5, 0.8, 0.4])
        torch.testing.assert_close(confidence_loss(w, tcp), torch.nn.functional.mse_loss(w, tcp))

    def test_the_truth_gets_no_gradient(self):
        w = torch.tensor([0.2], requires_grad=True)
        tcp = torch.tensor([0.5], requires_grad=True)
        confidence_loss(w, tcp).backward()
        assert tcp.grad is None
        assert w.grad.item() == pytest.approx(-0.6)

    def test_masked_samples_do_not_count(self):
        w, tcp = torch.tensor([0.0, NAN], requires_grad=True), torch.tensor([0.5, NAN])
        value = confidence_loss(w, tcp, mask=torch.tensor([True, False]))
        value.backward()
        assert value.item() == 0.25
        assert w.grad.tolist() == [-1.0, 0.0]
        assert confidence_loss(w, tcp, mask=torch.zeros(2, dtype=torch.bool)).item() == 0.0

    def test_gradient(self):
        w = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
        tcp = torch.tensor([0.5, 0.1], dtype=torch.float64)
        assert gradcheck(lambda w: confidence_loss(w, tcp), w)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="tcp must have the shape of weights"):
            confidence_loss(torch.zeros(2), torch.zeros(3))


class TestTCPLoss:
    logits = random(4, 3).double()
    target = torch.tensor([0, 2, 1, 1])
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mask = torch.tensor([True, False, True, True])

    def parts(self, logits):
        losses = torch.nn.functional.cross_entropy(logits, self.target, reduction="none")
        return losses, true_class_probability(logits, self.target)

    def test_equals_the_equations_in_numpy(self):
        tcp = softmax(self.logits.numpy(), axis=1)[range(4), self.target]
        for mask in (None, self.mask):
            rows = slice(None) if mask is None else mask.numpy()
            expected = -np.log(tcp[rows]).mean()
            expected += np.square(self.weights.numpy()[rows] - tcp[rows]).mean()
            loss = tcp_loss(*self.parts(self.logits), self.weights, mask=mask)
            assert loss.item() == pytest.approx(expected, rel=1e-12)

    def test_confidence_does_not_move_the_classifier(self):
        def gradient(weight):
            logits = self.logits.clone().requires_grad_()
            tcp_loss(*self.parts(logits), torch.full_like(self.weights, weight)).backward()
            return logits.grad

        assert torch.equal(gradient(0.0), gradient(1.0))

    @pytest.mark.parametrize("fill", [0.0, NAN])
    def test_what_does_not_count_changes_nothing(self, fill):
        arguments = [
            x.masked_fill(~self.mask, fill).requires_grad_()
            for x in (*self.parts(self.logits), self.weights)
        ]
        loss = tcp_loss(*arguments, mask=self.mask)
        loss.backward()
        rows = [x[self.mask].detach() for x in (*self.parts(self.logits), self.weights)]
        torch.testing.assert_close(loss, tcp_loss(*rows))
        assert arguments[0].grad[1].item() == arguments[2].grad[1].item() == 0.0

    def test_several_branches_at_once_are_each_by_itself(self):
        logits, weights = random(4, 2, 3, seed=1).double(), random(4, 2, seed=2).double().sigmoid()
        mask = torch.stack([self.mask, torch.zeros(4, dtype=torch.bool)], dim=1)
        columns = [self.parts(logits[:, i]) for i in (0, 1)]
        losses, tcp = (torch.stack(part, dim=1) for part in zip(*columns, strict=True))
        for its_mask in (None, mask):
            of_one = [
                tcp_loss(*columns[i], weights[:, i], mask=None if its_mask is None else mask[:, i])
                for i in (0, 1)
            ]
            found = tcp_loss(losses, tcp, weights, mask=its_mask)
            torch.testing.assert_close(found, torch.stack(of_one))
        assert found[1].item() == 0.0

    def test_no_sample_that_counts_is_zero(self):
        none = torch.zeros(4, dtype=torch.bool)
        assert tcp_loss(*self.parts(self.logits), self.weights, mask=none).item() == 0.0

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"losses": torch.zeros(4, 3)}, ValueError, "weights must have the shape of losses"),
            ({"weights": torch.zeros(3)}, ValueError, "weights must have the shape of losses"),
            ({"tcp": torch.zeros(3)}, ValueError, "tcp must have the shape of weights"),
            ({"tcp": torch.zeros(4).int()}, TypeError, "tcp must be floating point"),
            ({"mask": torch.zeros(4)}, TypeError, "mask must be a bool tensor"),
        ],
    )
    def test_bad_input(self, change, error, message):
        losses, tcp = self.parts(self.logits)
        whole = {"losses": losses, "tcp": tcp, "weights": self.weights}
        with pytest.raises(error, match=message):
            tcp_loss(**{**whole, **change})


class TestConfidence:
    @staticmethod
    def made(**options):
        """With a last layer that counts: it begins at nearly 0."""
        torch.manual_seed(0)
        module = Confidence(2, 4, **options).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        return module

    def test_equals_numpy(self):
        module = self.made()
        x, logits = random(2, 6, 4).double(), 2 * random(2, 6, 3, seed=1).double()
        state = {name: value.numpy() for name, value in module.state_dict().items()}
        expected = oracles.confidence(x.numpy(), logits.numpy(), state)
        found = module(x, logits)
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)

    def test_begins_at_what_the_logits_expect_of_themselves(self):
        torch.manual_seed(0)
        logits = 3 * random(2, 50, 3, seed=1)
        expected = logits.softmax(2).square().sum(2)
        found = Confidence(2, 4)(random(2, 50, 4), logits)
        torch.testing.assert_close(found, expected, atol=0.002, rtol=0)
        assert not torch.equal(found, expected)

    def test_no_gradient_into_the_logits(self):
        module = self.made()
        x, logits = (random(2, 5, n).double().requires_grad_() for n in (4, 3))
        module(x, logits).sum().backward()
        assert logits.grad is None
        assert x.grad.any()
        assert all(parameter.grad.any() for parameter in module.parameters())
        assert gradcheck(lambda x: module(x, logits), x)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_certain_logits_stay_finite(self, dtype):
        module = self.made().to(dtype)
        logits = torch.tensor([[[6e4, -6e4]], [[0.0, 0.0]]], dtype=dtype)
        weights = module(torch.ones(2, 1, 4, dtype=dtype), logits)
        weights.sum().backward()
        assert weights.dtype == dtype
        assert weights.isfinite().all()
        assert module.scale.grad.isfinite().all()

    def test_dropout_is_inside_the_mlp_and_in_training_only(self):
        module = self.made(dropout=0.5)
        x, logits = (random(2, 1, n).double().expand(2, 50, n) for n in (4, 3))
        assert len(module(x, logits).unique()) > 2
        assert len(module.eval()(x, logits).unique()) == 2

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"dropout must be in \[0.0, 1.0\), got 1.0"):
            Confidence(1, 4, dropout=1.0)
        with pytest.raises(ValueError, match="width must be at least 1, got 0"):
            Confidence(1, 0)
        with pytest.raises(ValueError, match="branches must be at least 1, got 0"):
            Confidence(0, 4)
        confidence = Confidence(2, 4)
        with pytest.raises(ValueError, match="x must have 4 features on its last axis"):
            confidence(torch.zeros(2, 2, 5), torch.zeros(2, 2, 3))
        with pytest.raises(TypeError, match="logits must be floating point"):
            confidence(torch.zeros(2, 2, 4), torch.zeros(2, 2, 3).int())
        # Without a word, one row of logits would serve for all samples, one net for all branches.
        for x, logits in ((2, (2, 1, 3)), (1, (1, 2, 3))):
            with pytest.raises(ValueError, match="must be of 2 branches and the same samples"):
                confidence(torch.zeros(x, 2, 4), torch.zeros(logits))


@pytest.mark.parametrize("kind", [TCPFusion, MeanFusion])
class TestFusions:
    branches: ClassVar = {"common": random(3, 4), "text": random(3, 4, seed=1)}
    logits: ClassVar = {"common": random(3, 2, seed=2), "text": random(3, 2, seed=3)}
    present: ClassVar = {"text": torch.tensor([True, False, True])}

    def test_the_fused_feature_is_the_weighted_sum(self, kind):
        torch.manual_seed(0)
        out = kind(["common", "text"], 4)(self.branches, self.logits, self.present)
        expected = sum(
            out.weights[name][:, None] * branch for name, branch in self.branches.items()
        )
        torch.testing.assert_close(out.fused, expected)

    def test_weights_belong_to_names(self, kind):
        torch.manual_seed(0)
        names = ["b", "d", "a", "c"]
        first, second = kind(names, 4), kind(sorted(names), 4)
        second.load_state_dict(first.state_dict())
        branches = {name: random(3, 4, seed=seed) for seed, name in enumerate(names)}
        logits = {name: random(3, 2, seed=seed) for seed, name in enumerate(names, start=4)}
        one = first(branches, logits)
        two = second(dict(sorted(branches.items())), dict(sorted(logits.items())))
        assert torch.equal(one.fused, two.fused)
        assert list(one.weights) == names
        assert list(two.weights) == sorted(names)

    def test_a_missing_branch_weighs_zero_whatever_stands_in_it(self, kind):
        torch.manual_seed(0)
        fusion = kind(["common", "text"], 4)
        gone = ~self.present["text"][:, None]
        results = []
        for fill in (0.0, NAN):
            branches, logits = (
                found | {"text": found["text"].masked_fill(gone, fill)}
                for found in (self.branches, self.logits)
            )
            out = fusion(branches, logits, self.present)
            if any(p.requires_grad for p in fusion.parameters()):
                out.fused.sum().backward()
            results.append([out.fused, *(p.grad.clone() for p in fusion.parameters())])
            fusion.zero_grad()
            assert out.weights["text"][1].item() == 0.0
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)
            assert one.isfinite().all()

    def test_nothing_present_is_zero(self, kind):
        fusion = kind(["common", "text"], 4)
        none = dict.fromkeys(["common", "text"], torch.zeros(3, dtype=torch.bool))
        out = fusion(self.branches, self.logits, none)
        assert not out.fused.any()
        assert not torch.stack(list(out.weights.values())).any()

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("branches", "error", "message"),
        [
            ({"common": torch.zeros(3, 4)}, ValueError, r"branches must be \['common', 'text'\]"),
            ([torch.zeros(3, 4)] * 2, TypeError, "branches must be a mapping by name, got list$"),
            (
                {"common": torch.zeros(3, 4), "text": torch.zeros(3, 5)},
                ValueError,
                r"branches\['text'\] must have 4 features on its last axis, got shape \(3, 5\)",
            ),
        ],
    )
    def test_bad_branches(self, kind, branches, error, message):
        with pytest.raises(error, match=message):
            kind(["common", "text"], 4)(branches, self.logits)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("names", [["common"], ["common", "text", "audio"]])
def test_logits_of_other_branches(names):
    logits = {name: torch.zeros(3, 2) for name in names}
    with pytest.raises(ValueError, match=r"logits must be of \['common', 'text'\], got \['common'"):
        TCPFusion(["common", "text"], 4)(TestFusions.branches, logits)


def test_mean_fusion_is_the_mean_of_the_present():
    fusion = MeanFusion(["common", "text"], 4)
    branches, present = TestFusions.branches, TestFusions.present
    out = fusion(branches, {}, present)
    mean = (branches["common"] + branches["text"]) / 2
    torch.testing.assert_close(out.fused[[0, 2]], mean[[0, 2]])
    torch.testing.assert_close(out.fused[1], branches["common"][1])


def test_tcp_weights_are_the_confidence_of_each_branch():
    torch.manual_seed(0)
    fusion = TCPFusion(["text", "common"], 4)
    branches, logits = TestFusions.branches, TestFusions.logits
    out = fusion(branches, logits)
    names = ["common", "text"]
    stacked = (torch.stack([found[name] for name in names]) for found in (branches, logits))
    for name, weight in zip(names, fusion.confidence(*stacked), strict=True):
        assert torch.equal(out.weights[name], weight)
    assert 0 < out.weights["common"].min() < out.weights["common"].max() < 1


class TestAddContext:
    VIDEOS = ("b", "a", "c", "a", "b", "a")

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.floats(0, 3))
    def test_is_a_product_with_the_geometric_mean_of_the_others(self, videos, weight):
        logits = random(len(videos), 4).double()
        found = softmax(add_context(logits, videos, weight=weight).numpy(), axis=1)
        own = softmax(logits.numpy(), axis=1)
        for clip, video in enumerate(videos):
            others = [n for n, other in enumerate(videos) if other == video and n != clip]
            wanted = own[clip] * (gmean(own[others]) ** weight if others else 1.0)
            np.testing.assert_allclose(found[clip], wanted / wanted.sum(), rtol=1e-9)

    def test_of_two_clips_each_hears_the_other(self):
        logits = torch.tensor([[0.0, 4.0], [2.0, 0.0]])
        found = add_context(logits, ["v", "v"], weight=0.5)
        assert torch.equal(found, torch.tensor([[1.0, 4.0], [2.0, 2.0]]))

    def test_without_weight_or_others_nothing_changes(self):
        logits = random(6, 3)
        assert torch.equal(add_context(logits, self.VIDEOS, weight=0.0), logits)
        assert torch.equal(add_context(logits, range(6), weight=2.0), logits)
        assert add_context(logits[:0], []).shape == (0, 3)

    def test_groups_are_of_any_kind_and_order(self):
        logits, order = random(6, 3), torch.tensor([4, 2, 0, 5, 1, 3])
        wanted = add_context(logits, self.VIDEOS)
        shuffled = add_context(logits[order], [self.VIDEOS[n] for n in order])
        torch.testing.assert_close(shuffled, wanted[order])
        numbers = [ord(video) for video in self.VIDEOS]
        for groups in (np.array(self.VIDEOS), np.array(numbers), torch.tensor(numbers)):
            assert torch.equal(add_context(logits, groups), wanted)

    def test_half_precision_is_computed_in_float32(self):
        logits = torch.full((200, 2), 500.0, dtype=torch.float16)
        found = add_context(logits, [0] * 200, weight=1.0)
        assert found.dtype == torch.float16
        assert (found == 1000).all()

    def test_gradient(self):
        logits = random(6, 3).double().requires_grad_()
        assert gradcheck(lambda x: add_context(x, self.VIDEOS, weight=0.7), [logits])

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("logits", "options", "error", "message"),
        [
            (torch.zeros(5, 2), {}, ValueError, "groups must be one per row of logits, 5, got 6"),
            (torch.zeros(6), {}, ValueError, r"logits must have 2 axes, got shape \(6,\)"),
            (torch.zeros(6, 2).long(), {}, TypeError, "logits must be floating point"),
            (torch.zeros(6, 2), {"weight": -1.0}, ValueError, "weight must be in"),
        ],
    )
    def test_bad_input(self, logits, options, error, message):
        with pytest.raises(error, match=message):
            add_context(logits, self.VIDEOS, **options)
