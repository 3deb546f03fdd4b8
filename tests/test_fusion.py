"""True class probability, the fusion and its loss (Eqs. 10-12)."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch.autograd import gradcheck

from tdmer.fusion import (
    MeanFusion,
    TCPFusion,
    TCPLoss,
    confidence_loss,
    tcp_loss,
    true_class_probability,
)
from tdmer.tasks import Classification, MultiLabel

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
    logits: ClassVar = {"a": random(4, 3), "b": random(4, 3, seed=1)}
    weights: ClassVar = {
        "a": torch.tensor([0.1, 0.2, 0.3, 0.4]),
        "b": torch.tensor([0.9, 0.8, 0.7, 0.6]),
    }
    labels = torch.tensor([0, 2, -100, 1])
    present: ClassVar = {"b": torch.tensor([True, False, True, True])}

    def test_equals_the_equations_in_numpy(self):
        known = {"a": [0, 1, 3], "b": [0, 3]}
        expected = 0.0
        for name, rows in known.items():
            labels = self.labels[rows]
            tcp = softmax(self.logits[name][rows].double().numpy(), axis=1)
            tcp = tcp[range(len(rows)), labels]
            expected += -np.log(tcp).mean()
            expected += np.square(self.weights[name][rows].numpy() - tcp).mean()
        weights = dict(reversed(self.weights.items()))  # by name, in any order
        loss = tcp_loss(Classification(), self.logits, weights, self.labels, present=self.present)
        assert loss.item() == pytest.approx(expected, rel=1e-6)

    def test_several_labels_per_sample(self):
        labels = torch.tensor([[0.0, 1.0, NAN], [NAN, NAN, NAN], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        expected = 0.0
        for name, rows in {"a": [0, 2, 3], "b": [0, 2, 3]}.items():
            sure = expit(self.logits[name][rows].double().numpy())
            truth = labels[rows].double().numpy()
            right = np.where(truth == 1, sure, 1 - sure)
            right = np.ma.masked_array(right, np.isnan(truth))
            expected += -np.log(right).mean(axis=1).mean()
            weights = self.weights[name][rows].numpy()
            expected += np.square(weights - right.mean(axis=1)).mean()
        loss = tcp_loss(MultiLabel(), self.logits, self.weights, labels)
        assert loss.item() == pytest.approx(expected, rel=1e-6)

    def test_the_task_is_asked_once_for_all_branches(self):
        class Counting(Classification):
            asked = 0

            def labelled(self, labels):
                self.asked += 1
                return super().labelled(labels)

        tasks = [Counting(), Counting()]
        for task, names in zip(tasks, ("a", "ab"), strict=True):
            logits, weights = ({n: x[n] for n in names} for x in (self.logits, self.weights))
            tcp_loss(task, logits, weights, self.labels)
        assert tasks[0].asked == tasks[1].asked > 0

    def test_module_equals_function(self):
        task = Classification()
        arguments = (self.logits, self.weights, self.labels)
        assert torch.equal(
            TCPLoss(task)(*arguments, present=self.present),
            tcp_loss(task, *arguments, present=self.present),
        )

    def test_confidence_does_not_move_the_classifier(self):
        def gradient(weight):
            logits = random(4, 3).requires_grad_()
            weights = {"a": torch.full((4,), weight)}
            tcp_loss(Classification(), {"a": logits}, weights, self.labels).backward()
            return logits.grad

        assert torch.equal(gradient(0.0), gradient(1.0))

    def test_what_stands_in_a_missing_branch_does_not_matter(self):
        results = []
        for fill in (0.0, NAN):
            b = self.logits["b"].masked_fill(~self.present["b"][:, None], fill).requires_grad_()
            w = self.weights["b"].masked_fill(~self.present["b"], fill).requires_grad_()
            loss = tcp_loss(Classification(), {"b": b}, {"b": w}, self.labels, present=self.present)
            loss.backward()
            results.append([loss.detach(), b.grad, w.grad])
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)

    def test_no_label_at_all_is_zero(self):
        labels = torch.full((4,), -100)
        assert tcp_loss(Classification(), self.logits, self.weights, labels).item() == 0.0

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="weights must name the branches of logits"):
            tcp_loss(Classification(), self.logits, {"a": self.weights["a"]}, self.labels)
        odd = {
            r"logits\['b'\] must have the shape of logits\['a'\], \(4, 3\), got \(4, 2\)": (
                self.logits | {"b": torch.zeros(4, 2)},
                self.weights,
                self.labels,
            ),
            r"logits\['a'\] must have 2 axes, got shape \(4,\)": (
                {name: x[:, 0] for name, x in self.logits.items()},
                self.weights,
                self.labels,
            ),
            r"weights\['b'\] must have shape \(4,\), got \(3,\)": (
                self.logits,
                self.weights | {"b": torch.zeros(3)},
                self.labels,
            ),
            r"labels must be of 4 samples, got shape \(3,\)": (
                self.logits,
                self.weights,
                self.labels[:3],
            ),
        }
        for message, arguments in odd.items():
            with pytest.raises(ValueError, match=message):
                tcp_loss(Classification(), *arguments)
        with pytest.raises(ValueError, match=r"present\['b'\] must have shape \(4,\), got \(3,\)"):
            tcp_loss(
                Classification(),
                self.logits,
                self.weights,
                self.labels,
                present={"b": torch.ones(3, dtype=torch.bool)},
            )


@pytest.mark.parametrize("kind", [TCPFusion, MeanFusion])
class TestFusions:
    branches: ClassVar = {"common": random(3, 4), "text": random(3, 4, seed=1)}
    present: ClassVar = {"text": torch.tensor([True, False, True])}

    def test_the_fused_feature_is_the_weighted_sum(self, kind):
        torch.manual_seed(0)
        fusion = kind(["common", "text"], 4, 2)
        out = fusion(self.branches, self.present)
        expected = sum(
            out.weights[name][:, None] * branch for name, branch in self.branches.items()
        )
        torch.testing.assert_close(out.fused, expected)
        for name, head in fusion.heads.items():
            here = self.present.get(name, torch.ones(3, dtype=torch.bool))
            branch = self.branches[name][here]
            torch.testing.assert_close(out.logits[name][here], branch @ head.weight.T + head.bias)

    def test_a_missing_branch_weighs_zero_whatever_stands_in_it(self, kind):
        torch.manual_seed(0)
        fusion = kind(["common", "text"], 4, 2)
        gone = ~self.present["text"][:, None]
        results = []
        for fill in (0.0, NAN):
            branches = self.branches | {"text": self.branches["text"].masked_fill(gone, fill)}
            out = fusion(branches, self.present)
            loss = out.fused.sum() + sum(x.sum() for x in out.logits.values())
            loss.backward()
            results.append([out.fused, *(p.grad.clone() for p in fusion.parameters())])
            fusion.zero_grad()
            assert out.weights["text"][1].item() == 0.0
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)
            assert one.isfinite().all()

    def test_nothing_present_is_zero(self, kind):
        fusion = kind(["common", "text"], 4, 2)
        none = dict.fromkeys(["common", "text"], torch.zeros(3, dtype=torch.bool))
        out = fusion(self.branches, none)
        assert not out.fused.any()
        assert not torch.stack(list(out.weights.values())).any()

    @pytest.mark.usefixtures("unchecked")
    def test_bad_branches(self, kind):
        with pytest.raises(ValueError, match=r"branches must be \['common', 'text'\]"):
            kind(["common", "text"], 4, 2)({"common": self.branches["common"]})


def test_mean_fusion_is_the_mean_of_the_present():
    fusion = MeanFusion(["common", "text"], 4, 2)
    branches, present = TestFusions.branches, TestFusions.present
    out = fusion(branches, present)
    mean = (branches["common"] + branches["text"]) / 2
    torch.testing.assert_close(out.fused[[0, 2]], mean[[0, 2]])
    torch.testing.assert_close(out.fused[1], branches["common"][1])


def test_tcp_weights_differ_by_sample_and_are_probabilities():
    torch.manual_seed(0)
    out = TCPFusion(["common"], 4, 2)({"common": random(50, 4)})
    assert 0 < out.weights["common"].min() < out.weights["common"].max() < 1
