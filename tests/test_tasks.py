"""Classification, sentiment and multi-label tasks."""

import inspect
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import log_loss
from torch.autograd import gradcheck
from torch.nn import functional as F

from tdmer import TDMER
from tdmer.objective import Task
from tdmer.tasks import Classification, MultiLabel, Sentiment, from_config

from .strategies import known_probabilities, thorough

NAN, INF = float("nan"), float("inf")
labels_in_range = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestClassification:
    def test_equals_scikit_learn(self):
        logits, labels = random(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
        loss = Classification(3)(logits, labels).mean().item()
        assert loss == pytest.approx(log_loss(labels, logits.softmax(1).numpy()), rel=1e-5)

    def test_missing_labels_count_nowhere(self):
        task, logits = Classification(4), random(3, 4)
        labels = torch.tensor([1, -100, 3])
        assert task.labelled(labels).tolist() == [True, False, True]
        assert task(logits, labels)[1].item() == 0.0
        tcp = task.true_class_probability(logits, labels)
        probabilities = logits.softmax(1)
        torch.testing.assert_close(
            tcp, torch.stack([probabilities[0, 1], torch.tensor(0.0), probabilities[2, 3]])
        )

    def test_label_smoothing_equals_torch(self):
        logits, labels = random(6, 3).double(), torch.tensor([0, 1, 2, -100, 1, 0])
        found = Classification(3, label_smoothing=0.2)(logits, labels)
        even = -logits.log_softmax(1).mean(1)
        expected = 0.8 * Classification(3)(logits, labels) + 0.2 * even
        expected[3] = 0.0
        torch.testing.assert_close(found, expected)
        mean = F.cross_entropy(logits, labels, label_smoothing=0.2)
        torch.testing.assert_close(found.sum() / 5, mean)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0.0, 1.0\), got 1.0"):
            Classification(3, label_smoothing=1.0)
        with pytest.raises(TypeError, match="label_smoothing must be a number, got str"):
            Classification(3, label_smoothing="0.1")
        with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
            Classification(1)
        with pytest.raises(TypeError, match="num_classes must be an int, got float"):
            Classification(2.0)
        with pytest.raises(ValueError, match="logits must have 3 features on its last axis"):
            Classification(3)(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(
            ValueError, match=r"be classes in \[0, 3\), or -100 .*, got 3 in sample 1"
        ):
            Classification(3)(torch.zeros(2, 3), torch.tensor([-100, 3]))
        with pytest.raises(TypeError, match=r"labels must be int64 class indices, got torch.float"):
            Classification(3)(torch.zeros(2, 3), torch.zeros(2))
        with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
            Classification(3)(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))

    @thorough
    @given(known_probabilities(), st.data())
    def test_known_probabilities(self, case, data):
        logits, probabilities = case
        classes = st.integers(0, logits.shape[1] - 1)
        labels = torch.tensor(
            data.draw(st.lists(classes, min_size=len(logits), max_size=len(logits)))
        )
        task, truth = Classification(logits.shape[1]), probabilities[range(len(labels)), labels]
        torch.testing.assert_close(task.true_class_probability(logits, labels), truth)
        torch.testing.assert_close(task(logits, labels), -truth.log())


class TestSentiment:
    @thorough
    @given(known_probabilities(), st.data())
    def test_known_probabilities(self, case, data):
        logits, probabilities = case
        b, k = logits.shape
        task = Sentiment(range(k))
        lower = torch.tensor(data.draw(st.lists(st.integers(0, k - 2), min_size=b, max_size=b)))
        share = torch.tensor(data.draw(st.lists(st.integers(0, 8), min_size=b, max_size=b))) / 8
        rows = torch.arange(b)
        truth = (1 - share) * probabilities[rows, lower] + share * probabilities[rows, lower + 1]
        labels = lower + share.double()
        torch.testing.assert_close(task.true_class_probability(logits, labels), truth)
        expected = (probabilities * torch.arange(k)).sum(dim=1)
        torch.testing.assert_close(task.predict(logits), expected)

    @thorough
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
        target = Sentiment().target(torch.tensor([-9.0, 3.5, 9.0]))
        assert torch.equal(target, torch.eye(7)[[0, 6, 6]])

    def test_uneven_values(self):
        target = Sentiment(values=(-1, 0, 3)).target(torch.tensor([1.0]))
        torch.testing.assert_close(target, torch.tensor([[0.0, 2 / 3, 1 / 3]]))

    def test_loss_equals_torch_with_soft_targets(self):
        task, logits, labels = Sentiment(), random(5, 7), torch.tensor([-3.0, 0.4, 1.5, -0.2, 3.0])
        expected = F.cross_entropy(logits, task.target(labels), reduction="none")
        torch.testing.assert_close(task(logits, labels), expected)
        error = (logits.softmax(1) @ torch.arange(-3.0, 4.0) - labels).abs()
        torch.testing.assert_close(Sentiment(l1_weight=0.5)(logits, labels), expected + 0.5 * error)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_label_smoothing_equals_torch(self, dtype):
        task, logits = Sentiment(label_smoothing=0.3), random(5, 7).to(dtype)
        labels = torch.tensor([-3.0, 0.4, 1.5, -0.2, 3.0], dtype=dtype)
        expected = F.cross_entropy(
            logits, task.target(labels), reduction="none", label_smoothing=0.3
        )
        torch.testing.assert_close(task(logits, labels), expected)
        # Where a label is one class, it is smoothed as a class is.
        found = task(logits, task.values[:5].to(dtype))
        one_hot = Classification(7, label_smoothing=0.3)(logits, torch.arange(5))
        torch.testing.assert_close(found, one_hot)
        if dtype == torch.float64:  # 1 / 7, which float32 holds to 4e-9 only
            torch.testing.assert_close(found, one_hot, atol=1e-14, rtol=0)

    def test_label_smoothing_is_of_the_cross_entropy_only(self):
        logits, labels = random(3, 7), torch.tensor([0.4, NAN, -2.0])
        smooth, plain = (Sentiment(l1_weight=0.5, label_smoothing=s) for s in (0.3, 0.0))
        without = Sentiment(label_smoothing=0.3), Sentiment()
        gap = without[0](logits, labels) - without[1](logits, labels)
        torch.testing.assert_close(smooth(logits, labels) - plain(logits, labels), gap)
        assert torch.equal(smooth.target(labels), plain.target(labels))
        assert torch.equal(smooth.predict(logits), plain.predict(logits))

    def test_prediction_and_tcp(self):
        task, logits = Sentiment(values=(-1, 0, 1)), torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
        assert task.predict(logits).item() == pytest.approx(0.3)
        tcp = task.true_class_probability(logits, torch.tensor([0.25]))
        assert tcp.item() == pytest.approx(0.75 * 0.3 + 0.25 * 0.5)

    def test_missing_labels_count_nowhere(self):
        task = Sentiment(l1_weight=1.0, label_smoothing=0.3)
        logits, labels = random(2, 7).requires_grad_(), torch.tensor([NAN, 1.0])
        loss = task(logits, labels)
        loss.sum().backward()
        assert loss[0].item() == 0.0
        assert logits.grad.isfinite().all()
        assert not logits.grad[0].any()
        assert task.labelled(labels).tolist() == [False, True]
        assert task.true_class_probability(logits, labels)[0].item() == 0.0

    def test_gradient(self):
        task = Sentiment(l1_weight=0.3, label_smoothing=0.1).double()
        labels = torch.tensor([0.4, -2.0]).double()
        logits = random(2, 7).double().requires_grad_()
        assert gradcheck(lambda x: task(x, labels), logits)

    def test_values_follow_the_module(self):
        assert Sentiment().to(torch.float64).values.dtype == torch.float64
        assert "values" in Sentiment().state_dict()

    @pytest.mark.parametrize("module", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_input_sets_the_precision(self, dtype, module):
        task = Sentiment(l1_weight=0.5).to(module)
        logits, labels = random(2, 7).to(dtype), torch.tensor([1 / 3, -2.1], dtype=torch.float64)
        exact = Sentiment(l1_weight=0.5).double()
        found = task(logits, labels), task.predict(logits)
        expected = exact(logits.double(), labels), exact.predict(logits.double())
        for one, two in zip(found, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one, two.to(dtype))
        tcp = task.true_class_probability(logits, labels)
        assert tcp.dtype == dtype
        # The label is not rounded to the precision of the values.
        assert task.target(labels)[0, 4].item() == pytest.approx(1 / 3, rel=1e-14)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        "values",
        [(1,), (0, 0), (1, 0), ((0, 1), (2, 3)), (0, 1, INF), (-INF, 0, 1), (0, NAN, 1), (0, 1e39)],
    )
    def test_bad_values(self, values):
        with pytest.raises(ValueError, match="values must be two or more finite increasing number"):
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
        task = MultiLabel(4)
        np.testing.assert_allclose(task(self.logits, self.labels), expected_loss, rtol=1e-5)
        tcp = task.true_class_probability(self.logits, self.labels)
        np.testing.assert_allclose(tcp, expected_tcp, rtol=1e-5)
        assert task.labelled(self.labels).tolist() == [True, False, True]

    def test_gradient_is_finite_with_missing_labels(self):
        logits = self.logits.clone().requires_grad_()
        task = MultiLabel(4)
        (
            task(logits, self.labels) + task.true_class_probability(logits, self.labels)
        ).sum().backward()
        assert logits.grad.isfinite().all()
        assert not logits.grad[1].any()

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="labels must have the shape of logits"):
            MultiLabel(3)(torch.zeros(2, 3), torch.zeros(2, 4))
        with pytest.raises(ValueError, match="logits must have 3 features on its last axis"):
            MultiLabel(3)(torch.zeros(2, 4), torch.zeros(2, 4))
        with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
            MultiLabel(0)


TASKS = [
    (Classification(3), torch.tensor([0, 2])),
    (Sentiment(values=(-1, 0, 1), l1_weight=1.0), torch.tensor([0.5, -1.0])),
    (MultiLabel(3), torch.tensor([[0.0, 1, 1], [1, 1, 0]])),
]


@pytest.mark.parametrize(("task", "labels"), TASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_every_precision(task, labels, dtype):
    logits = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]], dtype=torch.float64)
    precise = torch.promote_types(dtype, torch.float32)
    for method in (task, task.true_class_probability):
        value = method(logits.to(dtype), labels)
        assert value.dtype == precise
        torch.testing.assert_close(value, method(logits, labels).to(precise))
    prediction = task.predict(logits.to(dtype))
    assert prediction.dtype in (precise, torch.int64)
    torch.testing.assert_close(prediction, task.predict(logits).to(prediction.dtype))


@pytest.mark.parametrize(("task", "labels"), TASKS)
def test_probabilities(task, labels):
    logits = 3 * random(2, 5, 3).double()
    binary = isinstance(task, MultiLabel)
    expected = expit(logits.numpy()) if binary else softmax(logits.numpy(), axis=-1)
    found = task.probabilities(logits)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    # As the true class probability and the prediction have it, in float32 at least.
    assert task.probabilities(logits.half()).dtype == torch.float32
    if binary:
        assert torch.equal(task.predict(logits[0]), found[0])
    if isinstance(task, Classification):
        truth = found[0, :2][range(2), labels]
        torch.testing.assert_close(task.true_class_probability(logits[0, :2], labels), truth)


@pytest.mark.parametrize("label_smoothing", [0.1, 0.9])
@pytest.mark.parametrize("kind", [Classification, Sentiment])
def test_smoothing_leaves_the_true_class_probability_alone(kind, label_smoothing):
    plain, smooth = (
        Classification(7, label_smoothing=share)
        if kind is Classification
        else Sentiment(label_smoothing=share)
        for share in (0.0, label_smoothing)
    )
    logits = random(3, 7)
    labels = torch.tensor([1, -100, 6]) if kind is Classification else torch.tensor([0.5, NAN, 3.0])
    tcp = smooth.true_class_probability(logits, labels)
    assert torch.equal(tcp, plain.true_class_probability(logits, labels))
    assert not torch.equal(smooth(logits, labels), plain(logits, labels))


@pytest.mark.parametrize(
    "task", [Classification(3, label_smoothing=0.1), Sentiment((0, 1)), MultiLabel(3)]
)
def test_is_what_the_objective_asks_for(task):
    assert isinstance(task, Task)


@pytest.mark.parametrize(("task", "labels"), TASKS)
def test_the_number_of_classes_is_the_width_of_the_logits(task, labels):
    model = TDMER({"text": 4, "audio": 3}, task.num_classes, width=8, heads=2)
    output = model({"text": torch.ones(2, 5, 4), "audio": torch.ones(2, 5, 3)})
    assert task(output.logits, labels).shape == (2,)
    assert Sentiment().num_classes == 7


TASKS = [
    Classification(3, label_smoothing=0.25),
    Classification(2, classes=("glad", "sad")),
    Sentiment((-1, 0.1, 2.5), l1_weight=0.5, label_smoothing=0.125),
    MultiLabel(1),
    MultiLabel(2, classes=["glad", "sad"]),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_task_is_made_of_its_config(task):
    config = json.loads(json.dumps(task.config))
    names = inspect.signature(type(task)).parameters
    assert list(config) == ["name", *names]  # nothing is left to a default
    again = from_config(config)
    assert type(again) is type(task)
    assert again.config == task.config
    logits = random(4, task.num_classes)
    assert torch.equal(again.predict(logits), task.predict(logits))


@pytest.mark.parametrize(
    "config",
    [
        *(None, 3, "Sentiment", [], {}, {"name": "eval", "source": "1"}, {"name": ["Sentiment"]}),
        {"name": "Classification"},
        {"name": "Classification", "num_classes": "3"},
        {"name": "Classification", "num_classes": 2, "classes": "ab"},
        {"name": "Classification", "num_classes": 2, "classes": ["a", "a"]},
        {"name": "Classification", "num_classes": 3, "classes": ["a", "b"]},
        {"name": "MultiLabel", "num_classes": 2, "classes": ["a", None]},
        {"name": "MultiLabel", "num_classes": 2, "values": [1, 2]},
        {"name": "Sentiment", "values": [2, 1]},
        {"name": "Sentiment", "values": "many"},
        {"name": "Sentiment", "values": [[0, 1], [2]]},
        {"name": "Sentiment", "values": [0, 10**400]},
        {"name": "Sentiment", "l1_weight": float("nan")},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_other_configs_are_refused(config):
    with pytest.raises(ValueError, match=r"task must be the config of one of \['Classification'"):
        from_config(config)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Classification(3), "Classification(num_classes=3, label_smoothing=0.0)"),
        (
            Sentiment((-1, 0.5), l1_weight=2.0, label_smoothing=0.5),
            "Sentiment(values=[-1.0, 0.5], l1_weight=2.0, label_smoothing=0.5)",
        ),
        (MultiLabel(4), "MultiLabel(num_classes=4)"),
    ],
)
def test_repr_shows_the_options(module, expected):
    assert repr(module) == expected
