"""From one recording to sequences."""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_positive, check_real
from tdmer.features.media import audio_blocks, probe, video_frames
from tdmer.features.speech import Word


class Part(Protocol):
    """What makes features, and knows what they are."""

    @property
    def columns(self) -> list[str]:
        """What each column is, with its unit."""
        ...


@runtime_checkable
class TextPart(Part, Protocol):
    """What makes features of words: :class:`TextStates`, or anything like it.

    Example:
        >>> class Lengths:
        ...     columns = ["number of letters"]
        ...
        ...     def __call__(self, words):
        ...         return np.array([[len(word)] for word in words], np.float32)
        >>> isinstance(Lengths(), TextPart)
        True
    """

    def __call__(self, words: list[str], /) -> NDArray[np.float32]:
        """Return one vector for each word, ``(words, f)``."""
        ...


@runtime_checkable
class AudioPart(Part, Protocol):
    """What makes features of sound: :class:`LogMel`, :class:`OpenSmile`, or anything like them.

    Example:
        >>> from tdmer.features import LogMel
        >>> isinstance(LogMel(), AudioPart)
        True
    """

    def __call__(
        self, samples: NDArray[np.float32], /
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return features ``(t, f)`` and times of a block, mono at 16 kHz."""
        ...


@runtime_checkable
class VideoPart(Part, Protocol):
    """What makes features of pictures: :class:`Face`, or anything like it.

    Example:
        >>> class Brightness:
        ...     columns = ["mean of all pixels, 0 to 255"]
        ...
        ...     def __call__(self, picture):
        ...         return np.array([picture.mean()], np.float32)
        >>> isinstance(Brightness(), VideoPart)
        True
    """

    def __call__(self, picture: NDArray[np.uint8], /) -> NDArray[np.float32] | None:
        """Return the features ``(f,)`` of an RGB picture, None where it shows nothing."""
        ...


@dataclass(frozen=True)
class Recording:
    """The sequences of one recording, from :func:`extract`.

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
        sizes = {n: f"{_counted(len(x), 'step')} of {x.shape[1]}" for n, x in self.inputs.items()}
        parts = [f"{name}: {self.notes.get(name, size)}" for name, size in sizes.items()]
        return f"Recording({', '.join([*parts, _counted(len(self.words), 'word')])})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it into one file of NumPy's, ``.npz``, which appears when it is whole."""
        facts = {"columns": self.columns, "words": self.words, "notes": self.notes}
        arrays: dict[str, NDArray[Any]] = {f"inputs/{name}": x for name, x in self.inputs.items()}
        arrays |= {f"times/{name}": x for name, x in self.times.items()}
        arrays["facts"] = np.array(json.dumps(facts | {"frames": self.frames}))
        partial = Path(f"{os.fspath(path)}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recording":
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            inputs = {name: file[f"inputs/{name}"] for name in facts["columns"]}
            times = {name: file[f"times/{name}"] for name in facts["columns"]}
        words = [Word(*word) for word in facts["words"]]
        return cls(inputs, facts["columns"], times, words, facts["notes"], facts["frames"])


def extract(
    path: str | os.PathLike[str],
    transcript: str | Iterable[tuple[str, float, float]] | None = None,
    *,
    speech: Callable[[NDArray[np.float32]], list[Word]] | None = None,
    text: TextPart | None = None,
    audio: AudioPart | None = None,
    video: VideoPart | None = None,
    fps: float = 5.0,
    start: float = 0.0,
    stop: float | None = None,
    max_seconds: float = 3600.0,
) -> Recording:
    """Make sequences of features of a recording: words, sound and face.

    The recording is decoded as a stream, a minute of sound and one picture at a time; what grows
    with its length are the features alone. What it lacks is a modality without steps, with a note
    that says why: no audio track, no words, no face.

    Args:
        path: sound or video that FFmpeg reads, such as ``.mp4`` or ``.wav``.
        transcript: what is said, as a str, whose words have no times, or as words with start and
            end in seconds, of which those are taken that begin between ``start`` and ``stop``.
        speech: what hears the words where there is no transcript, such as :class:`Whisper`.
        text: what makes features of words, such as :class:`TextStates`.
        audio: what makes features of sound, such as :class:`LogMel` or :class:`OpenSmile`.
        video: what makes features of pictures, such as :class:`Face`.
        fps: pictures per second that ``video`` looks at.
        start: where to begin, in seconds, to the frame.
        stop: where to end, in seconds; None: at the end.
        max_seconds: the longest recording to take; a longer one is taken in parts, by ``start`` and
            ``stop``.

    Returns:
        The sequences, what their columns are, and their times in the whole recording.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package that a part needs is not installed.
        ValueError: nothing to do, no transcript and nothing that hears, or a recording that is
            damaged, too long, or lacks all modalities.

    Example:
        >>> recording = extract("clip.mp4", audio=LogMel())  # doctest: +SKIP
        >>> recording  # doctest: +SKIP
        Recording(audio: 869 steps of 40, 0 words)
    """
    parts = {"text": text, "audio": audio, "video": video}
    if speech is None and all(part is None for part in parts.values()):
        raise ValueError("speech, text, audio or video must be given, got none of them")
    if text is not None and transcript is None and speech is None:
        raise ValueError("transcript must be given, or speech, which hears it, got neither")
    check_positive("max_seconds", max_seconds)
    check_real("start", start)
    media = probe(path)
    columns = {name: part.columns for name, part in parts.items() if part is not None}
    whole = media.seconds if stop is None else min(stop, media.seconds)
    if whole - start > max_seconds:
        rule = f"at most {max_seconds:g} s at a time"
        got = f"got {whole - start:.0f}: give start and stop, or a larger max_seconds"
        raise ValueError(f"{os.fspath(path)} must be {rule}, {got}")
    if stop is None and math.isnan(media.seconds):
        stop = start + max_seconds

    words = _words(transcript, start, math.inf if stop is None else stop)
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
    moments: dict[str, list[Any]] = {name: [] for name in columns}
    hear = speech if transcript is None else None
    if media.audio and (hear is not None or audio is not None):
        for begin, samples in audio_blocks(path, start=start, stop=stop):
            if hear is not None:
                words += [Word(w.text, w.start + begin, w.end + begin) for w in hear(samples)]
            if audio is not None:
                features, times = audio(samples)
                found["audio"].append(features)
                moments["audio"].extend(times + begin)
    if text is not None:
        found["text"] = [text([word.text for word in words])]
        moments["text"] = [word.start for word in words]
    frames = 0
    if video is not None:
        for time, picture in video_frames(path, fps=fps, start=start, stop=stop):
            frames += 1
            if (step := video(picture)) is not None:
                found["video"].append(step[None])
                moments["video"].append(time)

    silent = hear is not None and not media.audio
    reasons = {
        "text": "no audio track" if silent else "no words",
        "audio": "too short" if media.audio else "no audio track",
        "video": f"no face in {_counted(frames, 'picture')}" if media.video else "no video track",
    }
    notes = {name: reasons[name] for name in columns if not moments[name]}
    if len(notes) == len(columns) and (columns or not words):
        got = "; ".join(f"{name}: {note}" for name, note in notes.items()) or reasons["text"]
        raise ValueError(f"{os.fspath(path)} must have a step in some modality, got {got}")
    inputs = {
        name: np.concatenate([np.empty((0, len(columns[name]))), *steps], dtype=np.float32)
        for name, steps in found.items()
    }
    seconds = {name: np.array(times, np.float64) for name, times in moments.items()}
    return Recording(inputs, columns, seconds, words, notes, frames)


def _words(
    transcript: str | Iterable[tuple[str, float, float]] | None, start: float, stop: float
) -> list[Word]:
    if transcript is None:
        return []
    if isinstance(transcript, str):
        return [Word(word, math.nan, math.nan) for word in transcript.split()]
    words = [Word(*word) for word in transcript]
    return [word for word in words if start <= word.start < stop or math.isnan(word.start)]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
