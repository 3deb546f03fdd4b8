"""Pretrained encoders of transformers in front of the model: text, sound or frames to features."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_choice, check_count, check_features, check_mask, check_names
from tdmer.masks import zero_pads
from tdmer.model import TDMER, TDMEROutput

CONFIG = "encoders.json"
# By the main input of a model of transformers: what is encoded, and how many axes it has.
KINDS = {
    "input_ids": ("text", 2),
    "input_values": ("audio", 2),
    "input_features": ("audio", 2),
    "pixel_values": ("video", 5),
}


class PretrainedEncoder(nn.Module):
    """A model of transformers, ``(b, t, width)`` out of token ids, waveforms or frames.

    - **Text**: any encoder with token ids.
    - **Audio**: wav2vec 2.0, HuBERT, WavLM and their like, and the encoder of Whisper. Every
      recording is encoded as if it were alone. Models whose first layer normalises over time
      (``feat_extract_norm="group"``) would see pads, with a mask or without: of them, only
      recordings of one length share a computation. Whisper hears consecutive windows of 30 s,
      the last filled up with silence.
    - **Video**: an image model, frame by frame. A frame is the pooled output of the model, where it
      has weights for it, or the first token; in a layer below the last always the first token.

    What is frozen stays in evaluation mode and leaves no graph. Layers are never dropped as a whole
    (``layerdrop``), since a hidden layer would then be missing.

    Args:
        model: Model of transformers; of one with a head or a decoder, the encoder is kept.
        processor: Its tokenizer or feature extractor. The latter says whether a waveform is
            normalised, and Whisper needs it. Frames come as its image processor makes them.
        layer: ``"last"``; a number, as transformers counts ``hidden_states``, from 0, what enters
            the first block; or ``"weighted"``, the sum of all of them with learned weights: a
            softmax, as in SUPERB, times a scale, as in ELMo.
        train: ``"none"``; ``"all"``, all that is not frozen in the model; or the number of blocks,
            up to the layer that is read, of which nothing but the last are trained.
        frames: Frames that are encoded at once.

    Attributes:
        kind: ``"text"``, ``"audio"`` or ``"video"``.
        width: Features of a step.
        sampling_rate: Samples per second of the waveforms; None unless audio.

    Raises:
        ImportError: There is no transformers.
        TypeError: An argument is of the wrong type.
        ValueError: The model is of another kind, or an option is none of these.

    Source:
        Yang et al., "SUPERB: Speech processing universal performance benchmark", Interspeech 2021;
        Peters et al., "Deep contextualized word representations" (ELMo), NAACL 2018, Eq. 1.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> bert = BertModel(BertConfig(vocab_size=50, num_hidden_layers=2, **size))
        >>> encoder = PretrainedEncoder(bert, layer="weighted", train=1)
        >>> features, mask = encoder(torch.tensor([[2, 7, 3], [2, 3, 0]]))
        >>> encoder.kind, features.shape, mask.shape
        ('text', torch.Size([2, 3, 16]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        *,
        layer: str | int = "last",
        train: str | int = "none",
        frames: int = 32,
    ) -> None:
        super().__init__()
        if not isinstance(model, _transformers().PreTrainedModel):
            raise TypeError(f"model must be one of transformers, got {type(model).__name__}")
        kind, config = type(model).__name__, cast(Any, model).config
        self.model: Any = model.base_model
        if config.model_type == "whisper":
            self.model = getattr(self.model, "encoder", self.model)
        main = self.model.main_input_name
        count = getattr(config, "num_hidden_layers", None)
        waves = hasattr(config, "feat_extract_norm") and not getattr(config, "add_adapter", False)
        if (
            main not in KINDS
            or not count
            or not hasattr(config, "hidden_size")
            or (config.is_encoder_decoder and hasattr(self.model, "decoder"))
            or (main == "input_values" and not waves)
            or (main == "input_features" and config.model_type != "whisper")
        ):
            raise ValueError(
                "model must be an encoder with hidden states of text, of audio as wav2vec 2.0 or "
                f"Whisper without an adapter, or of images, got {kind}"
            )
        if main == "input_features" and processor is None:
            raise ValueError(f"processor must be the feature extractor of {kind}, got None")
        if isinstance(layer, str):
            check_choice("layer", layer, ("last", "weighted"))
        else:
            check_count("layer", layer, least=0)
            if layer > count:
                raise ValueError(f"layer must be at most {count} for this {kind}, got {layer}")
        self.options = {"layer": layer, "train": train, "frames": frames}
        read = len(self._blocks())
        if isinstance(train, str):
            check_choice("train", train, ("none", "all"))
        else:
            check_count("train", train)
            if train > read:
                raise ValueError(f"train must be at most {read} for this {kind}, got {train}")
        check_count("frames", frames)
        self.processor = processor
        self.kind, self._ndim = KINDS[main]
        self.width: int = config.hidden_size
        self.sampling_rate: int | None = None
        if self.kind == "audio":
            self.sampling_rate = getattr(processor, "sampling_rate", 16000)
        if layer == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(count + 1))
            self.scale = nn.Parameter(torch.ones(()))
        for part in (config, *self.model.modules()):
            if hasattr(part, "layerdrop"):
                part.layerdrop = 0.0
        if train != "all":
            self.model.requires_grad_(False)
            for part in self._trained():
                part.requires_grad_(True)
        # What cannot reach the output gets no gradient, for which several processes would wait.
        self._all_blocks()[read:].requires_grad_(False)
        pooler = getattr(self.model, "pooler", None)
        if pooler is not None and (self.kind != "video" or layer != "last"):
            pooler.requires_grad_(False)
        self.train(model.training)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        layer: str | int = "last",
        train: str | int = "none",
        frames: int = 32,
        local_files_only: bool = True,
        **hub: Any,
    ) -> "PretrainedEncoder":
        """Load a model and its tokenizer or feature extractor, in evaluation mode.

        Args:
            name: A folder, or a repository of the Hub. Of a model of images and text, such as CLIP,
                it is the part for images.
            layer: As of the class, and so ``train`` and ``frames``.
            train: See there.
            frames: See there.
            local_files_only: False allows to download; else only what is there is used.
            **hub: What transformers takes to find files: ``revision``, ``token``, ``cache_dir``.

        Raises:
            OSError: A file is not there.
            ValueError: Weights are missing in the files, or as of the class.
        """
        hub["local_files_only"] = local_files_only
        model = _load_model(name, hub)
        processor = _load_processor(model, name, hub)
        return cls(model, processor, layer=layer, train=train, frames=frames)

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Return the ids of texts and the mask of the real ones, cut to what the model can read.

        Raises:
            TypeError: ``texts`` is a single text.
            ValueError: The encoder has no tokenizer.
        """
        if self.kind != "text" or self.processor is None:
            raise ValueError(f"tokenize needs an encoder of text with a tokenizer, got {self.kind}")
        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, got a single one")
        most = getattr(self.model.config, "max_position_embeddings", None)
        most = min(self.processor.model_max_length, most or 10**6)
        options = {"padding": True, "truncation": True, "max_length": most, "return_tensors": "pt"}
        found = self.processor(list(texts), **options)
        return found["input_ids"], found["attention_mask"].bool()

    def forward(
        self, x: Shaped[Tensor, "b ..."], mask: Bool[Tensor, "b t"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        """Encode a batch.

        Args:
            x: Token ids ``(b, t)``, waveforms ``(b, samples)``, which begin with what is real, or
                frames ``(b, t, 3, h, w)``.
            mask: True where a step is real, ``(b, t)``; None: all are. What stands elsewhere
                changes nothing.

        Returns:
            Features, 0 in padded steps, and their mask: of audio, with as many steps as the model
            makes, 50 a second.
        """
        if self.kind != "text":
            check_features("x", x, ndim=self._ndim)
        elif not isinstance(x, Tensor) or x.is_floating_point() or x.ndim != 2:
            got = f"{x.dtype}, {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be token ids (b, t) in a tensor of whole numbers, got {got}")
        check_mask("mask", mask, x.shape[:2])
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if x.shape[1] == 0:
            return self._zeros(len(x), 0), mask
        if self.kind == "video":
            return self._encode_frames(x, mask), mask
        pad = getattr(self.model.config, "pad_token_id", None) or 0 if self.kind == "text" else 0
        x = x.masked_fill(~mask, pad)
        if self.kind == "text":
            return zero_pads(self._run(input_ids=x, attention_mask=mask.long()), mask), mask
        x = x.to(self.model.dtype)
        windows = self.model.config.model_type == "whisper"
        features, mask = (self._encode_windows if windows else self._encode_waves)(x, mask)
        return zero_pads(features, mask), mask

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Set the mode of what is trained; the rest stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        for part in self._trained():
            part.train(mode)
        return self

    def activation_checkpointing_enable(self) -> None:
        """Compute blocks anew for the gradient, by the model's own means.

        Some older releases of transformers do so with ``train="all"`` only.
        """
        name = "activation_checkpointing_enable"
        if not hasattr(self.model, name):
            name = "gradient_checkpointing_enable"
        getattr(self.model, name)({"use_reentrant": False})

    def _all_blocks(self) -> nn.ModuleList:
        # The same for all architectures: of the lists of that length, the one that weighs most.
        count = self.model.config.num_hidden_layers
        lists = [x for x in self.model.modules() if isinstance(x, nn.ModuleList)]
        lists = [x for x in lists if len(x) == count] or [nn.ModuleList()]
        return max(lists, key=lambda x: sum(p.numel() for p in x.parameters()))

    def _blocks(self) -> list[nn.Module]:
        layer = self.options["layer"]
        return list(self._all_blocks())[: layer if isinstance(layer, int) else None]

    def _trained(self) -> list[nn.Module]:
        train = self.options["train"]
        if isinstance(train, int):
            return self._blocks()[-train:]
        return [self.model] if train == "all" else []

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, self.width, dtype=self.model.dtype, device=self.model.device)

    def _run(self, **inputs: Tensor) -> Tensor:
        layer, video = self.options["layer"], self.kind == "video"
        trained = any(p.requires_grad for p in self.model.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            found = self.model(**inputs, output_hidden_states=layer != "last")
        if layer == "last":
            pooled = getattr(found, "pooler_output", None) if video else None
            states = found.last_hidden_state if pooled is None else pooled.unsqueeze(1)
        elif layer == "weighted":
            weights = self.scale * self.layer_weights.softmax(dim=0)
            states = sum(w * h for w, h in zip(weights, found.hidden_states, strict=True))
        else:
            states = found.hidden_states[layer]
        # Under autocast the last operation may have left another dtype.
        return cast(Tensor, states[:, 0] if video else states).to(self.model.dtype)

    def _encode_frames(self, x: Tensor, mask: Tensor) -> Tensor:
        features, real = self._zeros(*mask.shape), x[mask].to(self.model.dtype)
        if len(real):
            parts = real.split(self.options["frames"])
            features[mask] = torch.cat([self._run(pixel_values=part) for part in parts])
        return features

    def _encode_waves(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        config, lengths = self.model.config, mask.sum(dim=1)
        if getattr(self.processor, "do_normalize", False):
            count = lengths.clamp(min=1).unsqueeze(1)
            x = (x - x.sum(dim=1, keepdim=True) / count).masked_fill(~mask, 0.0)
            x = x / (x.square().sum(dim=1, keepdim=True) / count + 1e-7).sqrt()
        field = 1
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
            field = (field - 1) * stride + kernel
        x = F.pad(x, (0, max(0, field - x.shape[1])))
        mask = F.pad(mask, (0, x.shape[1] - mask.shape[1]))
        counts = self.model._get_feat_extract_output_lengths(lengths).clamp(min=0)
        steps = int(self.model._get_feat_extract_output_lengths(x.shape[1]))
        real = torch.arange(steps, device=x.device) < counts.unsqueeze(1)
        if config.feat_extract_norm == "layer":
            seen = mask | (counts == 0).unsqueeze(1)
            return self._run(input_values=x, attention_mask=seen.long()), real
        features = self._zeros(len(x), steps)
        for length in lengths.unique().tolist():
            if length >= field:
                same = lengths == length
                found = self._run(input_values=x[same, :length])
                features[same] = F.pad(found, (0, 0, 0, steps - found.shape[1]))
        return features, real

    def _encode_windows(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        size = self.processor.n_samples
        step = size // self.model.config.max_source_positions
        real = F.pad(mask, (0, -x.shape[1] % step)).unflatten(1, (-1, step)).any(dim=2)
        windows, heard = (F.pad(part, (0, -x.shape[1] % size)) for part in (x, mask))
        windows = windows.reshape(-1, size)
        heard = heard.reshape(-1, size).any(dim=1)
        heard = heard | ~heard.any()
        sounds = list(windows[heard].float().cpu().numpy())
        with torch.autocast("cpu", enabled=False):  # where the spectrum is computed
            mels = self.processor(sounds, sampling_rate=self.sampling_rate, return_tensors="pt")
        found = self._run(input_features=mels.input_features.to(x.device, x.dtype))
        features = self._zeros(len(windows), found.shape[1])
        features[heard] = found
        return features.reshape(len(x), -1, self.width)[:, : real.shape[1]], real


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
        old = [p for e in self.encoders.values() for p in cast(Any, e).model.parameters()]
        known = {id(p) for p in old}
        groups = (([p for p in self.parameters() if id(p) not in known], lr), (old, encoder_lr))
        groups_of = [([p for p in group if p.requires_grad], rate) for group, rate in groups]
        return [{"params": group, "lr": rate} for group, rate in groups_of if group]

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
        (place / CONFIG).write_text(f"{json.dumps(how, indent=2)}\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "EncodedTDMER":
        """Build what :meth:`save_pretrained` wrote, in evaluation mode; nothing is downloaded.

        Raises:
            OSError: A file is not there.
            ValueError: The files are not such as :meth:`save_pretrained` writes.
        """
        place, encoders = Path(folder), {}
        for m, options in json.loads((place / CONFIG).read_text()).items():
            part, weights = _folder(place, m), options.pop("weights")
            hub = {"local_files_only": True}
            model = _load_model(part, hub)
            processor = _load_processor(model, part, hub) if options.pop("processor") else None
            encoders[m] = PretrainedEncoder(model, processor, **options)
            with torch.no_grad():
                for name, value in weights.items():
                    encoders[m].get_parameter(name).copy_(torch.tensor(value))
        return cls(encoders, TDMER.from_pretrained(place / "tdmer")).eval()


def _folder(place: Path, modality: str) -> Path:
    if Path(modality).name != modality:
        raise ValueError(f"a modality must be able to name a folder, got {modality!r}")
    return place / "encoders" / modality


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("encoders need transformers: pip install transformers") from error
    return transformers


def _load_model(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> nn.Module:
    library = _transformers()
    try:
        config = library.AutoConfig.from_pretrained(name, **hub)
    except OSError as error:
        if Path(name).is_dir() or not hub["local_files_only"]:
            raise
        rule = "be a folder, or downloaded before: local_files_only=False does so"
        raise FileNotFoundError(f"name must {rule}, got {str(name)!r}") from error
    config = getattr(config, "vision_config", config)
    kind: Any = library.AutoModel
    if config.architectures == ["WhisperEncoder"]:  # as it is saved here, without the decoder
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        kind = WhisperEncoder
    model, found = kind.from_pretrained(name, config=config, output_loading_info=True, **hub)
    missing = sorted(found["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
    elif missing:
        raise ValueError(f"{name} must hold all weights of the model, got none of {missing}")
    return cast(nn.Module, model)


def _load_processor(model: Any, name: str | os.PathLike[str], hub: Mapping[str, Any]) -> Any:
    main, library = model.main_input_name, _transformers()
    if main == "pixel_values":
        return None
    if main != "input_ids":
        return library.AutoFeatureExtractor.from_pretrained(name, **hub)
    # Of a folder without one, transformers 4.57 stumbles, and 5 makes one that knows no word.
    missing = FileNotFoundError(f"{name} must hold a tokenizer with its vocabulary, got none")
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(name, **hub)
    except TypeError as error:
        raise missing from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise missing
    return tokenizer
