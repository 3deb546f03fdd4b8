"""Encoders and a model as one, to be trained and saved together."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from tdmer._checks import check_names
from tdmer.encoders._files import load_model, load_processor
from tdmer.encoders.pretrained import PretrainedEncoder
from tdmer.model import TDMER, TDMEROutput
from tdmer.pretrained import write_file

CONFIG = "encoders.json"


class EncodedTDMER(nn.Module):
    """A :class:`~tdmer.model.TDMER` with encoders before some of its modalities.

    It is called as the model itself and returns the same, for
    :class:`~tdmer.objective.TDMERLoss`, :class:`~tdmer.trainer.TDMERForTrainer` or a loop of one's
    own. Modalities without an encoder are given as features.

    Args:
        encoders: By modality.
        model: Its ``dims`` are the widths of the encoders.

    Raises:
        ValueError: There is no encoder, or one does not fit the model.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> vit = ViTModel(ViTConfig(image_size=8, patch_size=4, num_hidden_layers=2, **size))
        >>> encoders = {"video": PretrainedEncoder(vit)}
        >>> model = EncodedTDMER(encoders, TDMER({"video": 16, "audio": 4}, num_classes=3))
        >>> inputs = {"video": torch.zeros(2, 5, 3, 8, 8), "audio": torch.zeros(2, 9, 4)}
        >>> model(inputs).logits.shape
        torch.Size([2, 3])
    """

    encoders: nn.ModuleDict
    model: TDMER

    def __init__(self, encoders: Mapping[str, PretrainedEncoder], model: TDMER) -> None:
        super().__init__()
        check_names("encoders", list(encoders))
        for m, encoder in encoders.items():
            if model.dims.get(m) != encoder.width:
                raise ValueError(
                    f"encoders must fit the model, whose dims are {model.dims}, "
                    f"got {m!r} of width {encoder.width}"
                )
        self.encoders = nn.ModuleDict(dict(encoders))
        self.model = model

    def encode(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor | None] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """Return features and masks of all modalities, as the model takes them."""
        features, steps = dict(inputs), dict(masks or {})
        for m, encoder in self.encoders.items():
            if m in features:
                features[m], steps[m] = encoder(features[m], steps.get(m))
        return features, steps

    def forward(
        self,
        inputs: Mapping[str, Shaped[Tensor, "b ..."]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        *rest: Any,
    ) -> TDMEROutput:
        """Encode the modalities that have an encoder, and predict; ``rest`` as of the model."""
        features, steps = self.encode(inputs, masks)
        return cast(TDMEROutput, self.model(features, steps))

    @torch.no_grad()
    def fit_normalization(self, batches: Iterable[Any]) -> dict[str, int]:
        """Fit the normalisation of the model to features of a training set.

        Args:
            batches: Tuples that begin with ``inputs, masks``, as :meth:`forward` takes them.

        Returns:
            As :meth:`TDMER.fit_normalization <tdmer.model.TDMER.fit_normalization>`.
        """
        training = self.training
        try:
            self.eval()
            return self.model.fit_normalization(self.encode(*batch[:2]) for batch in batches)
        finally:
            self.train(training)

    def parameter_groups(self, *, lr: float, encoder_lr: float) -> list[dict[str, Any]]:
        """Return what an optimizer of PyTorch takes: pretrained weights have their own rate.

        What is frozen is left out; weights of layers are new, and learn with the model.
        """
        old = {p for e in self.encoders.values() for p in cast(Any, e).model.parameters()}
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p not in old], "lr": lr},
            {"params": [p for p in trained if p in old], "lr": encoder_lr},
        ]
        return [group for group in groups if group["params"]]

    def save_pretrained(self, folder: str | os.PathLike[str], **about: Any) -> None:
        """Write ``tdmer/``, ``encoders/<modality>/`` and ``encoders.json``, which says how they go.

        Args:
            folder: Where to write; it is made.
            **about: What the model's own :meth:`~tdmer.pretrained.Pretrained.save_pretrained`
                takes: ``task``, ``extractor``, ``data``, ``metrics``, ``limits``.

        Raises:
            OSError: The folder cannot be written.
            ValueError: A modality cannot name a folder.
        """
        place = Path(folder)
        how: dict[str, dict[str, Any]] = {}
        for m, module in self.encoders.items():
            encoder = cast(PretrainedEncoder, module)
            part = _folder(place, m)
            encoder.model.save_pretrained(part)
            if encoder.processor is not None:
                encoder.processor.save_pretrained(part)
            how[m] = {**encoder.options, "processor": encoder.processor is not None}
            how[m]["weights"] = {n: p.tolist() for n, p in encoder.named_parameters(recurse=False)}
        self.model.save_pretrained(place / "tdmer", **about)
        write_file(place / CONFIG, f"{json.dumps(how, indent=2)}\n".encode())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "EncodedTDMER":
        """Build what :meth:`save_pretrained` wrote, in evaluation mode; nothing is downloaded.

        Raises:
            OSError: A file is not there.
            ValueError: The files are not such as :meth:`save_pretrained` writes.
        """
        place, encoders = Path(folder), {}
        content = (place / CONFIG).read_bytes()
        try:
            for m, options in json.loads(content).items():
                encoders[m] = _load(_folder(place, m), **options)
        except (AttributeError, TypeError, json.JSONDecodeError) as error:
            rule = "be one that save_pretrained of an EncodedTDMER wrote"
            raise ValueError(f"{place / CONFIG} must {rule}, got {error!r}") from None
        return cls(encoders, TDMER.from_pretrained(place / "tdmer")).eval()


def _folder(place: Path, modality: str) -> Path:
    if Path(modality).name != modality:
        raise ValueError(f"a modality must be able to name a folder, got {modality!r}")
    return place / "encoders" / modality


def _load(
    folder: Path, *, weights: Mapping[str, Any], processor: bool, **options: Any
) -> PretrainedEncoder:
    hub = {"local_files_only": True}
    model = load_model(folder, hub)
    reader = load_processor(model, folder, hub) if processor else None
    encoder = PretrainedEncoder(model, reader, **options)
    with torch.no_grad():
        for name, value in weights.items():
            encoder.get_parameter(name).copy_(torch.tensor(value))
    return encoder
