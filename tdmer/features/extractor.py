"""From one recording to sequences, and what a saved model keeps of how they were made."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_positive, check_real
from tdmer.features.acoustic import LogMel, OpenSmile
from tdmer.features.face import Face
from tdmer.features.media import audio_blocks, probe, video_frames
from tdmer.features.recording import Recording, counted
from tdmer.features.speech import Whisper, Word
from tdmer.features.text import TextStates


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


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """What makes sequences of features of a recording: of its words, its sound and its face.

    The recording is decoded as a stream, a minute of sound and one picture at a time; what grows
    with its length are the features alone. What it lacks is a modality without steps, with a note
    that says why: no audio track, no words, no face.

    A model that is saved with its extractor, ``save_pretrained(extractor=...)``, takes recordings:
    :class:`tdmer.prediction.Predictor`.

    Args:
        speech: what hears the words where there is no transcript, such as :class:`Whisper`.
        text: what makes features of words, such as :class:`TextStates`.
        audio: what makes features of sound, such as :class:`LogMel` or :class:`OpenSmile`.
        video: what makes features of pictures, such as :class:`Face`.
        fps: pictures per second that ``video`` looks at.
        max_seconds: the longest recording to take; a longer one is taken in parts, by ``start`` and
            ``stop``.

    Raises:
        ValueError: there is no part, or a number is not positive.

    Example:
        >>> extractor = Extractor(audio=LogMel())
        >>> extractor("clip.mp4")  # doctest: +SKIP
        Recording(audio: 869 steps of 40, 0 words)
        >>> extractor.config["audio"]
        {'name': 'LogMel', 'bands': 40}
        >>> Extractor.from_config(extractor.config) == extractor
        True
    """

    speech: Callable[[NDArray[np.float32]], list[Word]] | None = None
    text: TextPart | None = None
    audio: AudioPart | None = None
    video: VideoPart | None = None
    fps: float = 5.0
    max_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if all(part is None for part in (self.speech, self.text, self.audio, self.video)):
            raise ValueError("speech, text, audio or video must be given, got none of them")
        check_positive("fps", self.fps)
        check_positive("max_seconds", self.max_seconds)

    def __call__(
        self,
        path: str | os.PathLike[str],
        transcript: str | Iterable[tuple[str, float, float]] | None = None,
        *,
        start: float = 0.0,
        stop: float | None = None,
    ) -> Recording:
        """Return the sequences of a recording, what their columns are, and their times in it.

        Args:
            path: sound or video that FFmpeg reads, such as ``.mp4`` or ``.wav``.
            transcript: what is said, as a str, whose words have no times, or as words with start
                and end in seconds, of which those are taken that begin between ``start`` and
                ``stop``.
            start: where to begin, in seconds, to the frame.
            stop: where to end, in seconds; None: at the end.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: a package that a part needs is not installed.
            ValueError: no transcript and nothing that hears, or a recording that is damaged, too
                long, or lacks all modalities.
        """
        if self.text is not None and transcript is None and self.speech is None:
            rule = "transcript must be given, or speech, which hears it"
            raise ValueError(f"{rule}, got neither for {os.fspath(path)}")
        check_real("start", start)
        media = probe(path)
        parts = {"text": self.text, "audio": self.audio, "video": self.video}
        columns = {name: part.columns for name, part in parts.items() if part is not None}
        whole = media.seconds if stop is None else min(stop, media.seconds)
        if whole - start > self.max_seconds:
            rule = f"at most {self.max_seconds:g} s at a time"
            got = f"got {whole - start:.0f}: give start and stop, or a larger max_seconds"
            raise ValueError(f"{os.fspath(path)} must be {rule}, {got}")
        if stop is None and math.isnan(media.seconds):
            stop = start + self.max_seconds

        words = _words(transcript, start, math.inf if stop is None else stop)
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
        moments: dict[str, list[Any]] = {name: [] for name in columns}
        hear = self.speech if transcript is None else None
        if media.audio and (hear is not None or self.audio is not None):
            for begin, samples in audio_blocks(path, start=start, stop=stop):
                if hear is not None:
                    words += [Word(w.text, w.start + begin, w.end + begin) for w in hear(samples)]
                if self.audio is not None:
                    features, times = self.audio(samples)
                    found["audio"].append(features)
                    moments["audio"].extend(times + begin)
        if self.text is not None:
            found["text"] = [self.text([word.text for word in words])]
            moments["text"] = [word.start for word in words]
        frames = 0
        if self.video is not None:
            for time, picture in video_frames(path, fps=self.fps, start=start, stop=stop):
                frames += 1
                if (step := self.video(picture)) is not None:
                    found["video"].append(step[None])
                    moments["video"].append(time)

        silent = hear is not None and not media.audio
        face = f"no face in {counted(frames, 'picture')}"
        reasons = {
            "text": "no audio track" if silent else "no words",
            "audio": "too short" if media.audio else "no audio track",
            "video": face if media.video else "no video track",
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

    @property
    def config(self) -> dict[str, Any]:
        """All of it as JSON can hold it.

        Of a part that is an object of one's own program, no more than its name.
        """
        return {
            name: _described(value) if name in _PARTS else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], models: str | os.PathLike[str] | None = None
    ) -> "Extractor":
        """Make the extractor whose ``config`` this is, such as a saved model has it.

        Args:
            config: as :attr:`config`, of any origin; parts may be left out, or be parts.
            models: folder where files of models are looked for first, by the last part of their
                path.

        Raises:
            FileNotFoundError: the file of a model is not on this machine.
            ValueError: it is not such as :attr:`config`, or names a part of another program.
        """
        if not isinstance(config, Mapping):
            raise ValueError(f"extractor must be the config of one, got {config!r:.100}")
        options = dict(config)
        for name in _PARTS & options.keys():
            options[name] = _made(name, options[name], models)
        try:
            return cls(**options)
        except TypeError as error:
            raise ValueError(f"extractor must be the config of one, got {error}") from None


_PARTS = {"speech", "text", "audio", "video"}
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Whisper, TextStates, LogMel, OpenSmile, Face)
}
# Options that name a file or folder; and those that say where it comes from and where it runs,
# which is no part of what it makes.
_FILES = {"model", "encoder", "detector", "mesh", "emotions"}
_WHERE = {"download", "device"}


def _described(part: Any) -> dict[str, Any] | None:
    """Return a part as JSON can hold it."""
    if part is None:
        return None
    kind = type(part).__name__
    if type(part) is not _KINDS.get(kind):
        return {"name": getattr(part, "__name__", kind)}
    options = {f.name: getattr(part, f.name) for f in fields(part) if f.name not in _WHERE}
    for name in _FILES & options.keys():
        value = options[name]
        if isinstance(value, str | os.PathLike):
            path = os.fspath(value)
            # So that it can be told from a name on the Hub.
            relative = os.path.exists(path) and not os.path.isabs(path)
            options[name] = os.path.join(".", os.path.normpath(path)) if relative else path
        elif value is not None:
            return {"name": f"{kind} of {getattr(value, '__name__', type(value).__name__)}"}
    return {"name": kind, **options}


def _made(modality: str, config: Any, models: str | os.PathLike[str] | None) -> Any:
    """Return the part that :func:`_described` describes."""
    if config is None or callable(config):
        return config
    try:
        options = dict(config)
        kind = options.pop("name")
        if kind in _KINDS:
            for name in _FILES & options.keys():
                if options[name] is not None:
                    options[name] = _found(options[name], models)
            return _KINDS[kind](**options)
    except (KeyError, TypeError, ValueError) as error:
        rule = f"extractor must have the config of one of {list(_KINDS)} for {modality}"
        raise ValueError(f"{rule}, got {config!r:.200}: {error!r:.200}") from None
    rule = f"extractor must be given, since {modality} was made by something of another program"
    raise ValueError(f"{rule}, {kind}")


def _found(path: str, models: str | os.PathLike[str] | None) -> str:
    """Return where a model is on this machine, or its name on the Hub."""
    last = re.split(r"[/\\]", path)[-1]
    places = [path] if models is None else [os.path.join(models, last), path]
    for place in places:
        if os.path.exists(place):
            return place
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) and not path.endswith(".tflite"):
        return path
    rule = f"{path} must be on this machine, since features were made by it"
    raise FileNotFoundError(f"{rule}: name the folder that holds {last} by models")


def _words(
    transcript: str | Iterable[tuple[str, float, float]] | None, start: float, stop: float
) -> list[Word]:
    if transcript is None:
        return []
    if isinstance(transcript, str):
        return [Word(word, math.nan, math.nan) for word in transcript.split()]
    words = [Word(*word) for word in transcript]
    return [word for word in words if start <= word.start < stop or math.isnan(word.start)]
