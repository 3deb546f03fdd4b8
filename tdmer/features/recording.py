"""The sequences of one recording."""

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer.features.speech import Word
from tdmer.pretrained import write_file


@dataclass(frozen=True)
class Recording:
    """The sequences of one recording, from an :class:`Extractor`.

    Attributes:
        inputs: modality name → features ``(t, f)``; no steps: the modality is missing.
        columns: modality name → what each column is, with its unit.
        times: modality name → the time of each step in seconds; NaN of words without times.
        words: what is said, word by word.
        notes: modality name → why it is missing.
        frames: number of pictures that were looked at; those without a face have no step.

    Example:
        >>> said = {"text": np.ones((1, 2), np.float32)}
        >>> word = Word("hello", 0.2, 0.6)
        >>> recording = Recording(said, {"text": ["a", "b"]}, {"text": np.array([0.2])}, [word])
        >>> recording
        Recording(text: 1 step of 2, 1 word)
    """

    inputs: dict[str, NDArray[np.float32]]
    columns: dict[str, list[str]]
    times: dict[str, NDArray[np.float64]]
    words: list[Word] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    frames: int = 0

    def __repr__(self) -> str:
        sizes = {n: f"{counted(len(x), 'step')} of {x.shape[1]}" for n, x in self.inputs.items()}
        parts = [f"{name}: {self.notes.get(name, size)}" for name, size in sizes.items()]
        return f"Recording({', '.join([*parts, counted(len(self.words), 'word')])})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it into one file of NumPy's, ``.npz``, which appears when it is whole."""
        facts = {"columns": self.columns, "words": self.words, "notes": self.notes}
        arrays: dict[str, Any] = {f"inputs/{name}": x for name, x in self.inputs.items()}
        arrays |= {f"times/{name}": x for name, x in self.times.items()}
        arrays["facts"] = np.array(json.dumps(facts | {"frames": self.frames}))
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_file(Path(path), content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recording":
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            inputs = {name: file[f"inputs/{name}"] for name in facts["columns"]}
            times = {name: file[f"times/{name}"] for name in facts["columns"]}
        words = [Word(*word) for word in facts["words"]]
        return cls(inputs, facts["columns"], times, words, facts["notes"], facts["frames"])


def counted(count: int, what: str) -> str:
    """Return a number of things."""
    return f"{count} {what}{'' if count == 1 else 's'}"
