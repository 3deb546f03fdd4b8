"""Words and their times: faster-whisper (extra ``speech``) hears them."""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tdmer.features._extras import package


class Word(NamedTuple):
    """A word and when it is said."""

    text: str
    """The word, with its punctuation."""
    start: float
    """Where it begins, in seconds; NaN where nobody says."""
    end: float
    """Where it ends, in seconds; NaN where nobody says."""


@dataclass(frozen=True)
class Whisper:
    """Speech recognition by any Whisper model in the format of faster-whisper.

    The model is loaded at the first call and kept for all equal ones.

    Args:
        model: a folder with ``model.bin``, or a name on the Hugging Face Hub.
        language: its code, such as ``"en"``; None: the model finds out, block by block.
        download: whether to fetch a model that is not on this machine.
        device: ``"cpu"``, where it takes as many threads as PyTorch, or ``"cuda"``.

    Raises:
        ImportError: faster-whisper is not installed (when it is called).
        FileNotFoundError: the model is not on this machine (when it is called).

    Example:
        >>> words = Whisper("models/whisper-small")
        >>> words.download
        False
    """

    model: str | os.PathLike[str]
    language: str | None = None
    download: bool = False
    device: str = "cpu"

    def __call__(self, samples: NDArray[np.float32]) -> list[Word]:
        """Return the words of a block, mono at 16 kHz; times from its first sample."""
        segments, _ = _loaded(self).transcribe(
            samples,
            language=self.language,
            word_timestamps=True,
            vad_filter=True,  # Whisper invents words where nobody speaks.
            condition_on_previous_text=False,  # Else it falls into loops.
        )
        return [
            Word(word.word.strip(), float(word.start), float(word.end))
            for segment in segments
            for word in segment.words or []
        ]


@cache
def _loaded(options: Whisper) -> Any:
    whisper = package("faster_whisper", "speech")
    try:
        return whisper.WhisperModel(
            os.fspath(options.model),
            device=options.device,
            compute_type="float32" if options.device == "cpu" else "float16",
            cpu_threads=torch.get_num_threads(),
            local_files_only=not options.download,
        )
    except Exception as error:
        if options.download or type(error).__name__ != "LocalEntryNotFoundError":
            raise
        raise FileNotFoundError(
            f"model must be a folder of faster-whisper or on this machine, got "
            f"{os.fspath(options.model)!r}: download=True fetches it from the Hub"
        ) from error
