"""From recordings, texts or features to predictions: one call for one sample or many."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from tdmer.data.batch import collate
from tdmer.data.dataset import MultimodalDataset, as_features, as_float32, as_ids, check_present
from tdmer.encoders import EncodedTDMER, PretrainedEncoder
from tdmer.encoders.encoded import CONFIG
from tdmer.features import Extractor
from tdmer.features.media import RATE
from tdmer.model import COMMON, TDMER, TDMEROutput
from tdmer.tasks import Classification, MultiLabel, Sentiment, from_config

BATCH = 64

# A score, the name of a class, or the names of labels.
Decision = float | str | list[str]


@dataclass(frozen=True)
class Contribution:
    """What one branch adds to a prediction: what is common to the modalities, or one of these.

    Attributes:
        weight: Its weight in the fusion, an estimate of how far it can be trusted.
        prediction: What it would predict alone.
        probabilities: What it gives every class alone.
        confidence: The estimated true class probability of the modality by itself, before it
            attends to any other; None for what is common.

    Example:
        >>> Contribution(0.5, "glad", {"glad": 0.75, "sad": 0.25}, 0.625).weight
        0.5
    """

    weight: float
    prediction: Decision
    probabilities: dict[str, float]
    confidence: float | None


@dataclass(frozen=True)
class Prediction:
    """What a model says of one sample; ``str`` of it is a table.

    Attributes:
        id: The name of the sample.
        task: ``"Sentiment"``, ``"Classification"`` or ``"MultiLabel"``.
        prediction: The score; the name of the most probable class; or the names of the labels that
            are at least as probable as not.
        probabilities: Class value, class or label → its probability, in order.
        branches: ``"common"`` and the modalities that the sample has → what each contributes.
        missing: The modalities of the model that the sample lacks.
        notes: Modality → why a recording lacks it.

    Example:
        >>> glad = {"glad": 0.75, "sad": 0.25}
        >>> branches = {"text": Contribution(0.5, "glad", glad, 0.625)}
        >>> print(Prediction("clip", "Classification", "glad", glad, branches, ["audio"]))
        clip: glad
        probabilities: glad 0.750, sad 0.250
        branch  weight  alone  confidence
        text     0.500   glad       0.625
        missing: audio
    """

    id: str
    task: str
    prediction: Decision
    probabilities: dict[str, float]
    branches: dict[str, Contribution]
    missing: list[str]
    notes: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it, under the names of the attributes."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a table of the branches, below the prediction."""
        rows = [("branch", "weight", "alone", "confidence")]
        for name, branch in self.branches.items():
            own = "" if branch.confidence is None else f"{branch.confidence:.3f}"
            rows.append((name, f"{branch.weight:.3f}", shown(branch.prediction), own))
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [f"{self.id}: {shown(self.prediction)}"]
        given = (f"{name} {value:.3f}" for name, value in self.probabilities.items())
        lines.append(f"probabilities: {', '.join(given)}")
        for name, *cells in rows:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append("  ".join([f"{name:<{first}}", *padded]).rstrip())
        if self.missing:
            why = {m: f"{m} ({self.notes[m]})" if m in self.notes else m for m in self.missing}
            lines.append(f"missing: {', '.join(why.values())}")
        return "\n".join(lines)


def shown(decision: Decision) -> str:
    """Return a prediction as tables and pictures show it.

    Example:
        >>> shown(1.25), shown("glad"), shown(["glad", "calm"]), shown([])
        ('1.250', 'glad', 'glad, calm', 'none')
    """
    if isinstance(decision, float):
        return f"{decision:.3f}"
    return decision if isinstance(decision, str) else ", ".join(decision) or "none"


@dataclass(frozen=True)
class _Encoded:
    """An encoder as an extractor's part."""

    encoder: PretrainedEncoder

    @property
    def columns(self) -> list[str]:
        return [f"state {number}" for number in range(self.encoder.width)]

    def __call__(self, given: Any) -> Any:
        """Return the states of words; or those of sound, with their times."""
        if self.encoder.kind == "text":
            if not given:
                return np.empty((0, self.encoder.width), np.float32)
            return self.encode(self.encoder.tokenize([" ".join(given)])[0][0])
        if self.encoder.sampling_rate != RATE:
            got = f"{self.encoder.sampling_rate} Hz"
            raise ValueError(f"an encoder of recordings must hear {RATE} Hz, got {got}: give waves")
        states = self.encode(torch.from_numpy(given))
        return states, np.linspace(0.0, len(given) / RATE, len(states), endpoint=False)

    @torch.inference_mode()
    def encode(self, x: torch.Tensor) -> NDArray[np.float32]:
        """Return the states of one text, wave or row of frames."""
        device = next(self.encoder.parameters()).device
        states, mask = self.encoder(x.unsqueeze(0).to(device))
        found: NDArray[np.float32] = states[mask].float().cpu().numpy()
        return found


class Predictor:
    """A model with its task: from what is known of a sample to a :class:`Prediction`.

    Samples go through the model as in training: the same collate, masks and normalisation, in
    which single entries that are NaN or infinite count as the mean. How many are predicted at once
    changes nothing but rounding. Texts and recordings go through the model's encoders, where it has
    some, and else through the extractor that it was saved with.

    Args:
        model: The model. Whenever it predicts, it is put into evaluation mode; it stays on its
            device.
        task: What its predictions mean; None: the task that it was saved with.
        extractor: What makes features of texts and recordings, as it made those that the model was
            trained on; None: that which it was saved with.
        models: Folder where the extractor's own models are looked for first.

    Raises:
        ValueError: There is no task, or it has another number of classes than the model.

    Example:
        >>> task = Classification(2, classes=["calm", "angry"])
        >>> predictor = Predictor(TDMER({"text": 3, "audio": 2}, task.num_classes), task)
        >>> clip = {"text": np.ones((4, 3)), "audio": np.ones(2)}
        >>> list(predictor(clip).branches)
        ['common', 'text', 'audio']
        >>> predictor([clip, {"text": np.ones((1, 3))}])[1].missing
        ['audio']
    """

    task: Classification | Sentiment | MultiLabel
    model: TDMER
    encoders: dict[str, Any]

    def __init__(
        self,
        model: TDMER | EncodedTDMER,
        task: Classification | Sentiment | MultiLabel | None = None,
        *,
        extractor: Extractor | None = None,
        models: str | PathLike[str] | None = None,
    ) -> None:
        self.encoders = {}
        if isinstance(model, EncodedTDMER):
            self.encoders, model = dict(model.encoders.items()), model.model
        self.model = model
        if task is None and self.model.task_config is None:
            raise ValueError(
                "task must be given for a model that was saved without one: Predictor(model, task)"
            )
        self.task = from_config(self.model.task_config or {}) if task is None else task
        count, classes = self.task.num_classes, self.model.options["num_classes"]
        if count != classes:
            raise ValueError(f"task must have the {classes} classes of the model, got {count}")
        self._extractor, self._models = extractor, models

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        revision: str | None = None,
        extractor: Extractor | None = None,
        models: str | PathLike[str] | None = None,
    ) -> "Predictor":
        """Load a model that was saved with its task, from a folder or the Hub.

        Args:
            name: As in :meth:`~tdmer.pretrained.Pretrained.from_pretrained`, as which this also
                fails; or a folder that :meth:`tdmer.encoders.EncodedTDMER.save_pretrained` wrote.
            revision: Of a repository of the Hub.
            extractor: As in the constructor.
            models: Likewise.
        """
        model: TDMER | EncodedTDMER
        if (Path(name) / CONFIG).is_file():
            model = EncodedTDMER.from_pretrained(name)
        else:
            model = TDMER.from_pretrained(name, revision=revision)
        return cls(model, extractor=extractor, models=models)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str, too, can be iterated
        self,
        inputs: str | PathLike[str] | Mapping[str, Any],
        *,
        ids: Iterable[Any] | None = None,
    ) -> Prediction: ...
    @overload
    def __call__(
        self,
        inputs: MultimodalDataset | Iterable[str | PathLike[str] | Mapping[str, Any]],
        *,
        ids: Iterable[Any] | None = None,
    ) -> list[Prediction]: ...
    def __call__(
        self,
        inputs: str
        | PathLike[str]
        | Mapping[str, Any]
        | MultimodalDataset
        | Iterable[str | PathLike[str] | Mapping[str, Any]],
        *,
        ids: Iterable[Any] | None = None,
    ) -> Prediction | list[Prediction]:
        """Predict one sample, or each of many.

        Args:
            inputs: One sample: the path of a recording; or modality → its features ``(t, f)``, as
                an array, a tensor or nested lists, or one vector ``(f,)``; or for text a str, and
                for audio and video the path of a recording. Modalities may be left out or None. A
                transcript goes with a recording as ``{"recording": path, "text": transcript}``.
                What has an encoder is given as this takes it, without the axis of the batch. Or
                many: an iterable of such samples, or a data set of :mod:`tdmer.data`, whose labels
                are not read.
            ids: Names of the samples, one each; running numbers by default. A data set has its own.

        Raises:
            OSError: There is no such recording, or the model of a feature is not on this machine.
            TypeError: A sample is none of these.
            ValueError: A name or a width is not the model's, what is given are no numbers or none
                that is finite, a sample has no modality at all, nothing is known that makes
                features of a text or recording, or ``ids`` are not one each.
        """
        if isinstance(inputs, str | PathLike | Mapping):
            return self._samples([inputs], ids)[0]
        if not isinstance(inputs, MultimodalDataset):
            samples = list(inputs)
            return self._samples(samples, ids) if samples else []
        if ids is not None:
            raise ValueError("ids must be None for a data set, which has its own")
        self._check_names("inputs", inputs.dims)
        for m, width in inputs.dims.items():
            self._check_width(f"inputs of {m!r}", m, width)
        check_present(inputs)
        return self._predict(inputs)

    def _samples(self, samples: list[Any], ids: Iterable[Any] | None) -> list[Prediction]:
        names = as_ids("ids", range(len(samples)) if ids is None else ids)
        if len(names) != len(samples):
            raise ValueError(f"ids must be one per sample, {len(samples)}, got {len(names)}")
        for part in (self.model, *self.encoders.values()):
            part.eval()
        columns: dict[str, list[NDArray[Any]]] = {m: [] for m in self.model.modalities}
        notes: list[dict[str, str]] = []
        for number, sample in enumerate(samples):
            name = f"inputs[{number}]" if len(samples) > 1 else "inputs"
            if isinstance(sample, str | PathLike):
                sample = {"recording": sample}
            if not isinstance(sample, Mapping):
                got = type(sample).__name__
                raise TypeError(f"{name} must map names of modalities to features, got {got}")
            if "recording" in sample:
                found, note = self._recording(name, sample)
            else:
                self._check_names(name, sample)
                found, note = {m: self._made(f"{name}[{m!r}]", m, x) for m, x in sample.items()}, {}
            notes.append(note)
            for m, column in columns.items():
                column.append(self._features(f"{name}[{m!r}]", m, found.get(m)))
            if not any(len(column[-1]) for column in columns.values()):
                raise ValueError(f"{name} must hold a step of one of {list(columns)}, got none")
        predictions = self._predict(
            MultimodalDataset(columns, np.full(len(samples), np.nan), names)
        )
        return [replace(x, notes=note) for x, note in zip(predictions, notes, strict=True)]

    def _recording(
        self, name: str, sample: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the features of a recording, and why it lacks some modality."""
        said = sample.get("text")
        if not sample.keys() <= {"recording", "text"} or not isinstance(said, str | None):
            rule = "hold nothing beside a recording but its transcript, a str named text"
            raise ValueError(f"{name} must {rule}, got {[*sample]}")
        parts = [m for m in self.model.modalities if m in ("text", "audio", "video")]
        hears = ["speech"] if said is None and "text" in parts else []
        made = self._parts(f"{name}['recording']", *parts, *hears)(sample["recording"], said)
        return dict(made.inputs), made.notes

    def _made(self, name: str, modality: str, value: Any) -> Any:
        """Return features of a text, a recording or what an encoder takes; features as they are."""
        encoder = self.encoders.get(modality)
        if isinstance(value, str | PathLike):
            kind = modality if encoder is None else encoder.kind
            extractor = self._parts(name, kind)
            if extractor.text is None:
                return extractor(value).inputs[kind]
            return extractor.text([fspath(value)] if encoder else fspath(value).split())
        if encoder is None or value is None:
            return value
        return _Encoded(encoder).encode(torch.as_tensor(value))

    def _parts(self, name: str, *parts: str) -> Extractor:
        """Return what makes some modalities of recordings."""
        own = self._extractor
        known = (self.model.extractor_config or {}) if own is None else vars(own)
        others = {"speech", "text", "audio", "video"}.difference(parts)
        config = {option: value for option, value in known.items() if option not in others}
        # Frames are such as an image processor makes them: a recording has none.
        encoders = [encoder for encoder in self.encoders.values() if encoder.kind != "video"]
        config |= {e.kind: _Encoded(e) for e in encoders if e.kind in parts}
        if all(config.get(part) is None for part in parts if part != "speech"):
            rule = "be features, since the model was saved without an extractor that makes them"
            raise ValueError(f"{name} must {rule}: extractor= gives one")
        return Extractor.from_config(config, self._models)

    def _features(self, name: str, modality: str, value: Any) -> NDArray[Any]:
        if value is None:
            return np.empty((0, self.model.dims[modality]), np.float32)
        x = as_features(name, value, "(f)", "(t, f)")
        x = x[None] if x.ndim == 1 else x
        self._check_width(name, modality, x.shape[1])
        if len(x) and not np.isfinite(as_float32(x)).any():
            raise ValueError(f"{name} must hold a number that is finite, got none")
        return x

    def _check_names(self, name: str, given: Iterable[str]) -> None:
        unknown = [m for m in given if m not in self.model.modalities]
        if unknown:
            raise ValueError(f"{name} must be of {list(self.model.modalities)}, got {unknown}")

    def _check_width(self, name: str, modality: str, width: int) -> None:
        if width != self.model.dims[modality]:
            rule = f"have the {self.model.dims[modality]} features of the model"
            raise ValueError(f"{name} must {rule}, got {width}")

    @torch.inference_mode()
    def _predict(self, data: MultimodalDataset) -> list[Prediction]:
        self.model.eval()
        device = next(self.model.parameters()).device
        found: list[Prediction] = []
        # No loader: it would draw from the random generator.
        for first in range(0, len(data), BATCH):
            last = min(first + BATCH, len(data))
            batch = collate([data[number] for number in range(first, last)]).to(device)
            found += self._read(self.model(batch.inputs, batch.masks), batch.ids)
        return found

    def _read(self, output: TDMEROutput, ids: list[str]) -> list[Prediction]:
        task, modalities = self.task, self.model.modalities
        present = dict(zip(modalities, output.present.T.tolist(), strict=True))
        confidence = dict(zip(modalities, output.private.confidence.T.tolist(), strict=True))
        weights = {name: weight.tolist() for name, weight in output.weights.items()}
        decided, probable = task.decide(output.logits), self._probabilities(output.logits)
        alone = {
            name: (task.decide(logits), self._probabilities(logits))
            for name, logits in output.branch_logits.items()
        }
        return [
            Prediction(
                id=name,
                task=task.config["name"],
                prediction=decided[row],
                probabilities=probable[row],
                branches={
                    branch: Contribution(
                        weight=weights[branch][row],
                        prediction=alone[branch][0][row],
                        probabilities=alone[branch][1][row],
                        confidence=None if branch == COMMON else confidence[branch][row],
                    )
                    for branch in weights
                    if branch == COMMON or present[branch][row]
                },
                missing=[m for m in modalities if not present[m][row]],
            )
            for row, name in enumerate(ids)
        ]

    def _probabilities(self, logits: torch.Tensor) -> list[dict[str, float]]:
        rows = self.task.probabilities(logits).tolist()
        return [dict(zip(self.task.names, row, strict=True)) for row in rows]
