"""One vector for each word, by any model of text."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdmer._checks import check_count
from tdmer.encoders import PretrainedEncoder


@dataclass(frozen=True)
class TextStates:
    """The states of a text model, one for each word: the mean over the tokens of the word.

    Args:
        encoder: a folder in the format of transformers, which
            ``tdmer.encoders.PretrainedEncoder.from_pretrained`` opens; or an encoder with
            ``tokenize(texts) -> (ids, mask)``, ``encoder(ids, mask) -> (states, mask)`` and
            ``width``, in eval mode; or any callable that takes a list of words and returns one
            vector for each, ``(words, f)``.
        window: the most tokens that the encoder sees at a time; a longer text is cut between words.

    Raises:
        ValueError: an encoder in training mode, words that it does not split one by one, or
            another number of vectors than words (when it is called).

    Example:
        >>> lengths = TextStates(lambda words: np.array([[len(word)] for word in words]))
        >>> lengths(["so", "happy"])
        array([[2.],
               [5.]], dtype=float32)
    """

    encoder: Any
    window: int = 384

    def __post_init__(self) -> None:
        check_count("window", self.window)

    @property
    def columns(self) -> list[str]:
        """The name of each column; the states of a model have no units."""
        encoder = self._encoder
        width = encoder.width if hasattr(encoder, "width") else self(["a"]).shape[1]
        return [f"state {number}" for number in range(width)]

    @property
    def _encoder(self) -> Any:
        named = isinstance(self.encoder, (str, os.PathLike))
        return _loaded(os.fspath(self.encoder)) if named else self.encoder

    def __call__(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector for each word, ``(words, f)``; without words, ``(0, f)``."""
        if not words:
            return np.empty((0, len(self.columns)), np.float32)
        encoder = self._encoder
        if not hasattr(encoder, "tokenize"):
            states = np.asarray(encoder(list(words)), np.float32)
            if states.ndim != 2 or len(states) != len(words):
                rule = f"return one vector for each of {len(words)} words"
                raise ValueError(f"encoder must {rule}, got shape {states.shape}")
            return states
        if getattr(encoder, "training", False):
            raise ValueError("encoder must be in eval mode, got training mode: encoder.eval()")
        special = int(encoder.tokenize([""])[1].sum())
        found, begin, held = [], 0, special
        for place, count in enumerate(_counts(encoder, words)):
            if place > begin and held + count > self.window:
                found.append(_window(encoder, words[begin:place]))
                begin, held = place, special
            held += count
        found.append(_window(encoder, words[begin:]))
        return np.concatenate(found)


def _counts(encoder: Any, words: Sequence[str]) -> list[int]:
    """Return how many tokens each word of a sentence has."""
    # All but the first stand behind a blank, which many tokenisers see.
    spaced = [word if n == 0 else f" {word}" for n, word in enumerate(words)]
    _, mask = encoder.tokenize(["", *spaced])
    found = mask.sum(dim=1)
    counts: list[int] = (found[1:] - found[0]).tolist()
    return counts


@torch.inference_mode()
def _window(encoder: Any, words: Sequence[str]) -> NDArray[np.float32]:
    counts = _counts(encoder, words)
    ids, mask = encoder.tokenize([" ".join(words)])
    alone, _ = encoder.tokenize([""])
    extra = int(mask.sum()) - sum(counts)
    if extra != alone.shape[1]:
        got = f"{int(mask.sum()) - alone.shape[1]} tokens, {sum(counts)} word by word"
        raise ValueError(
            f"encoder must split words one by one, got {got}, in {' '.join(words)!r:.100}: give a "
            "smaller window where it cuts texts off, else a callable of words"
        )
    # How many tokens, such as BERT's [CLS], stand in front.
    same = (ids[0, :extra] == alone[0]).long()
    first = int(same.cumprod(dim=0).sum()) if extra else 0
    states, _ = encoder(ids, mask)
    parts = states[0, first : first + sum(counts)].split(counts)
    # A word without tokens, such as a blank of its own, has the vector 0.
    means = [part.mean(dim=0) if len(part) else states[0, 0] * 0 for part in parts]
    return torch.stack(means).float().cpu().numpy()


@cache
def _loaded(folder: str) -> PretrainedEncoder:
    return PretrainedEncoder.from_pretrained(folder).eval()
