"""One model of transformers: token ids, waveforms or frames to features."""

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tdmer._checks import check_choice, check_count, check_features, check_mask
from tdmer.encoders._files import load_model, load_processor, transformers
from tdmer.masks import zero_pads

# By the main input of a model of transformers: what is encoded, and how many axes it has.
KINDS = {
    "input_ids": ("text", 2),
    "input_values": ("audio", 2),
    "input_features": ("audio", 2),
    "pixel_values": ("video", 5),
}
FRAMES = 32  # that are encoded at once


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

    options: dict[str, Any]
    kind: str
    layer_weights: nn.Parameter
    scale: nn.Parameter

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        *,
        layer: str | int = "last",
        train: str | int = "none",
    ) -> None:
        super().__init__()
        if not isinstance(model, transformers().PreTrainedModel):
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
        self.options = {"layer": layer, "train": train}
        read = len(self._blocks())
        if isinstance(train, str):
            check_choice("train", train, ("none", "all"))
        else:
            check_count("train", train)
            if train > read:
                raise ValueError(f"train must be at most {read} for this {kind}, got {train}")
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
        local_files_only: bool = True,
        **hub: Any,
    ) -> "PretrainedEncoder":
        """Load a model and its tokenizer or feature extractor, in evaluation mode.

        Args:
            name: A folder, or a repository of the Hub. Of a model of images and text, such as CLIP,
                it is the part for images.
            layer: As of the class.
            train: As of the class.
            local_files_only: False allows to download; else only what is there is used.
            **hub: What transformers takes to find files: ``revision``, ``token``, ``cache_dir``.

        Raises:
            OSError: A file is not there.
            ValueError: Weights are missing in the files, or as of the class.
        """
        hub["local_files_only"] = local_files_only
        model = load_model(name, hub)
        processor = load_processor(model, name, hub)
        return cls(model, processor, layer=layer, train=train)

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
            Features, 0 in padded steps, and their mask; of audio with as many steps as the model
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
            parts = real.split(FRAMES)
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
