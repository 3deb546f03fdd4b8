"""What class, loss, true class probability and prediction mean for a kind of label.

A task is called with logits and labels and returns the supervised loss of every sample. A label
may be missing; the sample's loss is then 0 and :meth:`labelled` is False. Every task knows its
number of classes: ``TDMER(dims, task.num_classes)``. Its ``config`` is JSON that
:func:`from_config` makes the same task of; saved models carry it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_count, check_features, check_real, check_same_shape
from tdmer.fusion.tcp import true_class_probability
from tdmer.masks import is_readable


class Classification(nn.Module):
    """One class per sample: labels ``(b,)`` int64, -100 where missing.

    Labels that are no class are an error on a CPU; elsewhere a look at them would wait for the
    device. The same holds for the labels of the other tasks.

    Args:
        num_classes: Number of classes, at least 2.
        classes: Their names, in order, for predictions that are read; None: they have none.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1). The
            true class probability is that of the label as it is.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``num_classes`` is below 2, ``classes`` are not as many different names, or
            ``label_smoothing`` is out of range.

    Example:
        >>> task = Classification(2)
        >>> logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
        >>> task(logits, torch.tensor([0, -100]))
        tensor([0.6931, 0.0000])
        >>> task.predict(logits)
        tensor([0, 1])
    """

    missing = -100

    classes: list[str] | None

    def __init__(
        self,
        num_classes: int,
        *,
        classes: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_real("label_smoothing", label_smoothing, below=1.0)
        self.num_classes = num_classes
        self.classes = _names(classes, num_classes)
        self.label_smoothing = label_smoothing

    @property
    def config(self) -> dict[str, Any]:
        """What :func:`from_config` makes this task of."""
        return {
            "name": "Classification",
            "num_classes": self.num_classes,
            "classes": self.classes,
            "label_smoothing": self.label_smoothing,
        }

    def extra_repr(self) -> str:
        """Return the options."""
        return _shown(self.config)

    def forward(
        self, logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Cross-entropy of every sample, 0 where the label is missing."""
        self._check(logits, labels)
        return F.cross_entropy(
            _precise(logits),
            labels,
            reduction="none",
            ignore_index=self.missing,
            label_smoothing=self.label_smoothing,
        )

    def labelled(self, labels: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether a sample has a label."""
        return labels != self.missing

    def true_class_probability(
        self, logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Probability of the true class; 0 where the label is missing."""
        self._check(logits, labels)
        known = self.labelled(labels)
        tcp = true_class_probability(logits, labels.masked_fill(~known, 0))
        return tcp.masked_fill(~known, 0.0)

    def probabilities(self, logits: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
        """Return the probability of every class."""
        return _precise(logits).softmax(dim=-1)

    def predict(self, logits: Float[Tensor, "b k"]) -> Int64[Tensor, " b"]:
        """Return the most probable class."""
        return logits.argmax(dim=-1)

    @property
    def names(self) -> list[str]:
        """Names of the classes, their numbers where they have none."""
        return self.classes or [str(number) for number in range(self.num_classes)]

    def decide(self, logits: Float[Tensor, "b k"]) -> list[str]:
        """Return the name of the most probable class of every sample."""
        names = self.names
        return [names[number] for number in self.predict(logits).tolist()]

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        check_features("logits", logits, ndim=2, width=self.num_classes)
        if labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64 class indices, got {labels.dtype}")
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"labels must have shape {(len(logits),)}, got {tuple(labels.shape)}")
        if is_readable(labels):
            wrong = (labels < 0) | (labels >= self.num_classes)
            rule = f"be classes in [0, {self.num_classes}), or {self.missing} where missing"
            _refuse(labels, wrong & self.labelled(labels), rule)


class Sentiment(nn.Module):
    """A score between ordered class values: labels ``(b,)`` float, NaN where missing.

    A label is split linearly between its two nearest class values, so that the target's
    expectation is the label, and a label at a class value is one class, the paper's ``I*``. The
    prediction is the expectation of the class values. Labels outside the class values count as
    the nearest one; infinite ones are an error.

    Args:
        values: Class values, finite and increasing, in the units of the labels. They are held in
            torch's default precision, and follow the Module to another.
        l1_weight: Weight of the absolute error of the expectation beside the cross-entropy.
        label_smoothing: As in :class:`Classification`, of the cross-entropy.

    Raises:
        TypeError: ``l1_weight`` or ``label_smoothing`` is not a number.
        ValueError: ``values`` are fewer than two, infinite or not increasing, or a number is out
            of range.

    Example:
        >>> task = Sentiment(values=(-1, 0, 1))
        >>> task.target(torch.tensor([0.25, -1.0]))
        tensor([[0.0000, 0.7500, 0.2500],
                [1.0000, 0.0000, 0.0000]])
        >>> task.predict(torch.tensor([[0.0, 0.0, 2.0]]))
        tensor([0.6805])
    """

    values: Tensor

    def __init__(
        self,
        values: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
        *,
        l1_weight: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        buffer = torch.tensor(values, dtype=torch.get_default_dtype())
        increasing = buffer.ndim == 1 and bool(((buffer.diff() > 0) & buffer[1:].isfinite()).all())
        if not increasing or len(buffer) < 2 or not bool(buffer[0].isfinite()):
            raise ValueError(f"values must be two or more finite increasing numbers, got {values}")
        check_real("l1_weight", l1_weight)
        check_real("label_smoothing", label_smoothing, below=1.0)
        self.register_buffer("values", buffer)
        self.l1_weight = l1_weight
        self.label_smoothing = label_smoothing

    @property
    def num_classes(self) -> int:
        """Number of class values."""
        return len(self.values)

    @property
    def config(self) -> dict[str, Any]:
        """What :func:`from_config` makes this task of."""
        return {
            "name": "Sentiment",
            "values": self.values.tolist(),
            "l1_weight": self.l1_weight,
            "label_smoothing": self.label_smoothing,
        }

    def extra_repr(self) -> str:
        """Return the options."""
        return _shown(self.config)

    def target(self, labels: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Split labels between class values; rows sum to 1, and to 0 where a label is missing.

        In the precision of labels or class values, whichever is higher, and float32 at least.
        """
        known = self.labelled(labels)
        labels = _precise(labels.masked_fill(~known, 0.0))
        values = self.values.to(torch.promote_types(labels.dtype, self.values.dtype))
        # How much of every interval lies below the label, and what ends there.
        passed = (labels.to(values.dtype).unsqueeze(1) - values[:-1]) / values.diff()
        passed = passed.clamp(0.0, 1.0)
        split = F.pad(passed, (1, 0), value=1.0) - F.pad(passed, (0, 1))
        return split.masked_fill(~known.unsqueeze(1), 0.0)

    def forward(
        self, logits: Float[Tensor, "b k"], labels: Float[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Cross-entropy against the split label, and the weighted L1; 0 where it is missing."""
        self._check(logits, labels)
        precise = _precise(logits)
        target = self.target(labels).to(precise.dtype)
        known = self.labelled(labels)
        if self.label_smoothing:
            even = known.unsqueeze(1).to(target.dtype) / self.num_classes
            target = torch.lerp(target, even, self.label_smoothing)
        loss = -(target * precise.log_softmax(dim=-1)).sum(dim=-1)
        if self.l1_weight:
            labels = labels.masked_fill(~known, 0.0).to(precise.dtype)
            error = (self.predict(precise) - labels).abs()
            loss = loss + self.l1_weight * error.masked_fill(~known, 0.0)
        return loss

    def labelled(self, labels: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether a sample has a label."""
        return ~labels.isnan()

    def true_class_probability(
        self, logits: Float[Tensor, "b k"], labels: Float[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Expected probability under the split label; 0 where the label is missing."""
        self._check(logits, labels)
        precise = _precise(logits)
        return true_class_probability(precise, self.target(labels).to(precise.dtype))

    def probabilities(self, logits: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
        """Return the probability of every class value."""
        return _precise(logits).softmax(dim=-1)

    def predict(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """Return the expectation of the class values."""
        probabilities = self.probabilities(logits)
        return probabilities @ self.values.to(probabilities.dtype)

    @property
    def names(self) -> list[str]:
        """The class values as text."""
        return [f"{value:.7g}" for value in self.values.tolist()]

    def decide(self, logits: Float[Tensor, "b k"]) -> list[float]:
        """Return the score of every sample, as :meth:`predict` does."""
        scores: list[float] = self.predict(logits).tolist()
        return scores

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        check_features("logits", logits, ndim=2, width=self.num_classes)
        check_features("labels", labels, ndim=1)
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"labels must have shape {(len(logits),)}, got {tuple(labels.shape)}")
        if is_readable(labels):
            _refuse(labels, labels.isinf(), "be finite, or NaN where missing")


class MultiLabel(nn.Module):
    """Any number of labels per sample: labels ``(b, k)`` float 0 or 1, NaN where missing.

    Single entries may be missing; a sample counts if one of its labels is known.

    Args:
        num_classes: Number of labels.
        classes: Their names, as in :class:`Classification`.

    Raises:
        TypeError: ``num_classes`` is not an int, or ``classes`` are no names.
        ValueError: ``num_classes`` is below 1, or ``classes`` are not as many different names.

    Example:
        >>> task = MultiLabel(2)
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, float("nan")]])
        >>> task(logits, labels), task.true_class_probability(logits, labels)
        (tensor([0.6931]), tensor([0.5000]))
        >>> task.predict(logits)
        tensor([[0.5000, 0.8808]])
    """

    classes: list[str] | None

    def __init__(self, num_classes: int, *, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.num_classes = num_classes
        self.classes = _names(classes, num_classes)

    @property
    def config(self) -> dict[str, Any]:
        """What :func:`from_config` makes this task of."""
        return {
            "name": "MultiLabel",
            "num_classes": self.num_classes,
            "classes": self.classes,
        }

    def extra_repr(self) -> str:
        """Return the options."""
        return _shown(self.config)

    def forward(
        self, logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        """Mean binary cross-entropy over the known labels of every sample."""
        self._check(logits, labels)
        precise, known = _precise(logits), ~labels.isnan()
        labels = labels.masked_fill(~known, 0.0).to(precise.dtype)
        losses = F.binary_cross_entropy_with_logits(precise, labels, reduction="none")
        return self._mean_known(losses, known)

    def labelled(self, labels: Float[Tensor, "b k"]) -> Bool[Tensor, " b"]:
        """Whether a sample has at least one label."""
        return ~labels.isnan().all(dim=-1)

    def true_class_probability(
        self, logits: Float[Tensor, "b k"], labels: Float[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        """Mean probability of the true state over the known labels of every sample."""
        self._check(logits, labels)
        probabilities = self.probabilities(logits)
        known = ~labels.isnan()
        labels = labels.masked_fill(~known, 0.0).to(probabilities.dtype)
        of_state = labels * probabilities + (1 - labels) * (1 - probabilities)
        return self._mean_known(of_state, known)

    def probabilities(self, logits: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
        """Return the probability of every label."""
        return _precise(logits).sigmoid()

    def predict(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return the probability of every label."""
        return self.probabilities(logits)

    @property
    def names(self) -> list[str]:
        """Names of the labels, their numbers where they have none."""
        return self.classes or [str(number) for number in range(self.num_classes)]

    def decide(self, logits: Float[Tensor, "b k"]) -> list[list[str]]:
        """Return the names of the labels of every sample that are at least as probable as not."""
        chosen = (self.probabilities(logits) >= 0.5).tolist()
        return [[n for n, is_so in zip(self.names, row, strict=True) if is_so] for row in chosen]

    @staticmethod
    def _mean_known(values: Tensor, known: Tensor) -> Tensor:
        return values.masked_fill(~known, 0.0).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        check_features("logits", logits, ndim=2, width=self.num_classes)
        check_features("labels", labels)
        check_same_shape("labels", labels, "logits", logits)
        if is_readable(labels):
            wrong = (labels != 0) & (labels != 1) & ~labels.isnan()
            _refuse(labels, wrong, "be 0 or 1, or NaN where missing")


def from_config(config: Mapping[str, Any]) -> Classification | Sentiment | MultiLabel:
    """Make the task whose ``config`` this is, such as a saved model has it.

    Args:
        config: The task's ``name`` and the arguments of its constructor. It may be of any origin.

    Raises:
        ValueError: It is not such as a task's ``config``.

    Example:
        >>> task = Classification(2, classes=["calm", "angry"])
        >>> task.config["classes"]
        ['calm', 'angry']
        >>> from_config(task.config)
        Classification(num_classes=2, classes=['calm', 'angry'], label_smoothing=0.0)
    """
    try:
        options = dict(config)
        return _TASKS[options.pop("name")](**options)
    except Exception as error:
        # Whatever JSON of any origin makes of these lines, it is the configuration that is wrong.
        got = f"{config!r:.200}: {error!r:.200}"
        raise ValueError(f"task must be the config of one of {list(_TASKS)}, got {got}") from None


_TASKS: dict[str, type[Classification | Sentiment | MultiLabel]] = {
    "Classification": Classification,
    "Sentiment": Sentiment,
    "MultiLabel": MultiLabel,
}


def _names(classes: Sequence[str] | None, count: int) -> list[str] | None:
    """Return the names of the classes as a list, checked."""
    if classes is None:
        return None
    names = list(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"classes must be a sequence of strings, got {classes!r:.100}")
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"classes must be {count} different names, got {names!r:.100}")
    return names


def _shown(config: Mapping[str, Any]) -> str:
    """Return how a task shows its options: those that say something."""
    return ", ".join(f"{k}={v!r}" for k, v in config.items() if k != "name" and v is not None)


def _precise(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _refuse(labels: Tensor, wrong: Tensor, rule: str) -> None:
    if bool(wrong.any()):
        sample = int(wrong.nonzero()[0, 0])
        raise ValueError(f"labels must {rule}, got {labels[wrong][0]:g} in sample {sample}")
