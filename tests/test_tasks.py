"""Classification, sentiment and multi-label tasks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch.autograd import gradcheck
from torch.nn import functional as F

from tdmer.tasks import Classification, MultiLabel, Sentiment

NAN = float("nan")
labels_in_range = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestClassification:
    def test_equals_scikit_learn(self):
        logits, labels = random(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
        loss = Classification()(logits, labels).mean().item()
        assert loss == pytest.approx(log_loss(labels, logits.softmax(1).numpy()), rel=1e-5)

    def test_missing_labels_count_nowhere(self):
        task, logits = Classification(), random(3, 4)
        labels = torch.tensor([1, -100, 3])
        assert task.labelled(labels).tolist() == [True, False, True]
        assert task(logits, labels)[1].item() == 0.0
        tcp = task.true_class_probability(logits, labels)
        probabilities = logits.softmax(1)
        torch.testing.assert_close(
            tcp, torch.stack([probabilities[0, 1], torch.tensor(0.0), probabilities[2, 3]])
        )

    @pytest.mark.usefixtures("unchecked")
    def test_bad_labels(self):
        with pytest.raises(TypeError, match=r"labels must be int64 class indices, got torch.float"):
            Classification()(torch.zeros(2, 3), torch.zeros(2))
        with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
            Classification()(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))


class TestSentiment:
    @settings(deadline=None)
    @given(labels_in_range)
    def test_the_target_has_the_label_as_its_expectation(self, labels):
        task, labels = Sentiment(), torch.tensor(labels)
        target = task.target(labels)
        torch.testing.assert_close(target.sum(1), torch.ones(len(labels)))
        torch.testing.assert_close(target @ task.values, labels, atol=1e-5, rtol=1e-5)
        # Only the two nearest class values carry weight.
        assert ((target > 0).sum(1) <= 2).all()
        distance = (task.values - labels[:, None]).abs()
        assert distance[target > 0].max() <= 1.0

    def test_a_class_value_is_one_class(self):
        task = Sentiment()
        assert torch.equal(task.target(task.values), torch.eye(7))

    def test_labels_outside_count_as_the_nearest_value(self):
        assert Sentiment().target(torch.tensor([-9.0, 9.0])).argmax(1).tolist() == [0, 6]

    def test_uneven_values(self):
        target = Sentiment(values=(-1, 0, 3)).target(torch.tensor([1.0]))
        torch.testing.assert_close(target, torch.tensor([[0.0, 2 / 3, 1 / 3]]))

    def test_loss_equals_torch_with_soft_targets(self):
        task, logits, labels = Sentiment(), random(5, 7), torch.tensor([-3.0, 0.4, 1.5, -0.2, 3.0])
        expected = F.cross_entropy(logits, task.target(labels), reduction="none")
        torch.testing.assert_close(task(logits, labels), expected)
        error = (logits.softmax(1) @ torch.arange(-3.0, 4.0) - labels).abs()
        torch.testing.assert_close(Sentiment(l1_weight=0.5)(logits, labels), expected + 0.5 * error)

    def test_prediction_and_tcp(self):
        task, logits = Sentiment(values=(-1, 0, 1)), torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
        assert task.predict(logits).item() == pytest.approx(0.3)
        tcp = task.true_class_probability(logits, torch.tensor([0.25]))
        assert tcp.item() == pytest.approx(0.75 * 0.3 + 0.25 * 0.5)

    def test_missing_labels_count_nowhere(self):
        task = Sentiment(l1_weight=1.0)
        logits, labels = random(2, 7).requires_grad_(), torch.tensor([NAN, 1.0])
        loss = task(logits, labels)
        loss.sum().backward()
        assert loss[0].item() == 0.0
        assert logits.grad.isfinite().all()
        assert not logits.grad[0].any()
        assert task.labelled(labels).tolist() == [False, True]
        assert task.true_class_probability(logits, labels)[0].item() == 0.0

    def test_gradient(self):
        task, labels = Sentiment(l1_weight=0.3).double(), torch.tensor([0.4, -2.0]).double()
        logits = random(2, 7).double().requires_grad_()
        assert gradcheck(lambda x: task(x, labels), logits)

    def test_values_follow_the_module(self):
        assert Sentiment().to(torch.float64).values.dtype == torch.float64
        assert "values" in Sentiment().state_dict()

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("values", [(1,), (0, 0), (1, 0), ((0, 1), (2, 3))])
    def test_bad_values(self, values):
        with pytest.raises(ValueError, match="values must be two or more increasing numbers"):
            Sentiment(values=values)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="logits must have 7 features on its last axis"):
            Sentiment()(torch.zeros(2, 3), torch.zeros(2))
        with pytest.raises(TypeError, match="labels must be floating point"):
            Sentiment()(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(ValueError, match="l1_weight must be in"):
            Sentiment(l1_weight=-1.0)


class TestMultiLabel:
    logits = random(3, 4)
    labels = torch.tensor([[1.0, 0, NAN, 1], [NAN] * 4, [0, 0, 1, 1]])

    def test_equals_numpy_on_the_known_labels(self):
        p = 1 / (1 + np.exp(-self.logits.double().numpy()))
        y = self.labels.double().numpy()
        state = np.where(y == 1, p, 1 - p)
        expected_loss, expected_tcp = np.zeros(3), np.zeros(3)
        for row in (0, 2):
            known = ~np.isnan(y[row])
            expected_loss[row] = -np.log(state[row, known]).mean()
            expected_tcp[row] = state[row, known].mean()
        task = MultiLabel()
        np.testing.assert_allclose(task(self.logits, self.labels), expected_loss, rtol=1e-5)
        tcp = task.true_class_probability(self.logits, self.labels)
        np.testing.assert_allclose(tcp, expected_tcp, rtol=1e-5)
        assert task.labelled(self.labels).tolist() == [True, False, True]

    def test_gradient_is_finite_with_missing_labels(self):
        logits = self.logits.clone().requires_grad_()
        task = MultiLabel()
        (
            task(logits, self.labels) + task.true_class_probability(logits, self.labels)
        ).sum().backward()
        assert logits.grad.isfinite().all()
        assert not logits.grad[1].any()

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="labels must have the shape of logits"):
            MultiLabel()(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (Classification(), torch.tensor([0, 2])),
        (Sentiment(values=(-1, 0, 1), l1_weight=1.0), torch.tensor([0.5, -1.0])),
        (MultiLabel(), torch.tensor([[0.0, 1, 1], [1, 1, 0]])),
    ],
)
def test_low_precision_logits_are_computed_in_float32(task, labels):
    logits = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]])
    half = logits.to(torch.bfloat16)
    for method in (task, task.true_class_probability):
        value = method(half, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, method(logits, labels), atol=1e-6, rtol=1e-6)
