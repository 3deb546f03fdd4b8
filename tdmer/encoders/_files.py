"""What transformers reads of a folder or of the Hub."""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import nn


def transformers() -> Any:
    """Return the package, which is imported when it is needed."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ImportError("encoders need transformers: pip install transformers") from error


def load_model(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> nn.Module:
    """Return a model of which no weight is random."""
    library = transformers()
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


def load_processor(model: Any, name: str | os.PathLike[str], hub: Mapping[str, Any]) -> Any:
    """Return the tokenizer or feature extractor of a model; None of one of images."""
    main, library = model.main_input_name, transformers()
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
