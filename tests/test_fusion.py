"""True class probability, the fusion and its loss (Eqs. 10-12)."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.autograd import gradcheck

from tdmer.fusion import (
    MeanFusion,
    TCPFusion,
    confidence_loss,
    tcp_loss,
    true_class_probability,
)

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

    def test_no_sample_that_counts_is_zero(self):
        none = torch.zeros(4, dtype=torch.bool)
        assert tcp_loss(*self.parts(self.logits), self.weights, mask=none).item() == 0.0

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"losses": torch.zeros(4, 3)}, ValueError, r"losses must have 1 axes, got shape"),
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


@pytest.mark.parametrize("kind", [TCPFusion, MeanFusion])
class TestFusions:
    branches: ClassVar = {"common": random(3, 4), "text": random(3, 4, seed=1)}
    present: ClassVar = {"text": torch.tensor([True, False, True])}

    def test_the_fused_feature_is_the_weighted_sum(self, kind):
        torch.manual_seed(0)
        out = kind(["common", "text"], 4)(self.branches, self.present)
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
        one, two = first(branches), second(dict(sorted(branches.items())))
        assert torch.equal(one.fused, two.fused)
        assert list(one.weights) == names
        assert list(two.weights) == sorted(names)

    def test_a_missing_branch_weighs_zero_whatever_stands_in_it(self, kind):
        torch.manual_seed(0)
        fusion = kind(["common", "text"], 4)
        gone = ~self.present["text"][:, None]
        results = []
        for fill in (0.0, NAN):
            branches = self.branches | {"text": self.branches["text"].masked_fill(gone, fill)}
            out = fusion(branches, self.present)
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
        out = fusion(self.branches, none)
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
            kind(["common", "text"], 4)(branches)


def test_mean_fusion_is_the_mean_of_the_present():
    fusion = MeanFusion(["common", "text"], 4)
    branches, present = TestFusions.branches, TestFusions.present
    out = fusion(branches, present)
    mean = (branches["common"] + branches["text"]) / 2
    torch.testing.assert_close(out.fused[[0, 2]], mean[[0, 2]])
    torch.testing.assert_close(out.fused[1], branches["common"][1])


def test_tcp_weights_differ_by_sample_and_are_probabilities():
    torch.manual_seed(0)
    out = TCPFusion(["common"], 4)({"common": random(50, 4)})
    assert 0 < out.weights["common"].min() < out.weights["common"].max() < 1
