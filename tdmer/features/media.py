"""Sound and pictures of a recording as streams, of which no more is in memory than is looked at.

PyAV (extra ``audio`` or ``video``) decodes; what FFmpeg reads, this reads.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_positive, check_real
from tdmer.features._extras import package

RATE = 16_000
# Of files without an index FFmpeg guesses how long they are.
_GUESSED = {"mp3", "aac", "mpeg", "mpegts", "flv"}


class Media(NamedTuple):
    """What a file says about itself."""

    seconds: float
    """How long it is; NaN where it does not say."""
    audio: bool
    """Whether it has an audio track."""
    video: bool
    """Whether it has a video track; the cover of a song is none."""


def probe(path: str | os.PathLike[str]) -> Media:
    """Return how long a recording is and what tracks it has, from its head.

    Args:
        path: the file.

    Returns:
        Length and tracks.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: PyAV is not installed.
        ValueError: FFmpeg cannot read it, or it has neither sound nor pictures.

    Example:
        >>> probe("no.mp4")
        Traceback (most recent call last):
        FileNotFoundError: no.mp4 must be a file of sound or video
    """
    with _opened(path) as container:
        seconds = math.nan if container.duration is None else container.duration / 1e6
        tracks = [_track(container, kind) is not None for kind in ("audio", "video")]
        return Media(seconds, *tracks)


def audio_blocks(
    path: str | os.PathLike[str],
    *,
    seconds: float = 60.0,
    start: float = 0.0,
    stop: float | None = None,
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Decode the sound of a recording to mono at 16 kHz, block by block.

    A block ends at the quietest moment of its last sixth, so that hardly a word is cut in two.

    Args:
        path: the file.
        seconds: the longest block.
        start: where to begin, in seconds.
        stop: where to end, in seconds; None: at the end.

    Yields:
        The time of the first sample in seconds, and the samples of a block, ``(n,)`` in [-1, 1].
        Nothing where there is no audio track.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: PyAV is not installed.
        ValueError: FFmpeg cannot read it, or it ends before its head says.

    Example:
        >>> list(audio_blocks("no.wav"))
        Traceback (most recent call last):
        FileNotFoundError: no.wav must be a file of sound or video
    """
    check_positive("seconds", seconds)
    most = max(1, round(seconds * RATE))
    begin, held, pieces = None, 0, []
    resampler: Any = None
    for time, frame in _decoded(path, "audio", start, stop):
        if begin is None:
            # As floating point, FFmpeg would make two equal channels louder than one.
            resampler = package("av", "audio").AudioResampler("s16", layout="mono", rate=RATE)
            begin = time
        for piece in resampler.resample(frame):
            pieces.append(piece.to_ndarray()[0])
            held += len(pieces[-1])
        while held >= most:
            samples = np.concatenate(pieces)
            cut = _quietest(samples[:most])
            yield begin, _floats(samples[:cut])
            pieces, held, begin = [samples[cut:]], len(samples) - cut, begin + cut / RATE
    if begin is not None:
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
        samples = np.concatenate(pieces)
        if len(samples):
            yield begin, _floats(samples)


def video_frames(
    path: str | os.PathLike[str],
    *,
    fps: float = 5.0,
    start: float = 0.0,
    stop: float | None = None,
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Decode pictures of a recording, upright, at a rate.

    Args:
        path: the file.
        fps: pictures per second; where the file has fewer, it gives all of them.
        start: where to begin, in seconds.
        stop: where to end, in seconds; None: at the end.

    Yields:
        The time of a picture in seconds, and the picture, ``(height, width, 3)`` in RGB. Nothing
        where there is no video track.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: PyAV is not installed.
        ValueError: FFmpeg cannot read it, or it ends before its head says.

    Example:
        >>> list(video_frames("no.mp4"))
        Traceback (most recent call last):
        FileNotFoundError: no.mp4 must be a file of sound or video
    """
    check_positive("fps", fps)
    due = start
    for time, frame in _decoded(path, "video", start, stop):
        if time < due - 1e-6:
            continue
        due = start + (math.floor((time - start) * fps + 1e-6) + 1) / fps
        picture = frame.to_ndarray(format="rgb24")
        # Phones record lying and note how to turn the picture.
        yield time, np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


def _cut_short(path: Path) -> float:
    """Return how often the file would go into that which its head tells of, where it is a WAV.

    FFmpeg takes what is there for the whole.
    """
    with path.open("rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:], "little")
    known = head[:4] == b"RIFF" and size != 0xFFFFFFFF
    return max(1.0, (size + 8) / path.stat().st_size) if known else 1.0


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)} must be a file of sound or video")
    if not Path(path).stat().st_size:
        rule = "must be sound or video, got an empty file: copy or download it again"
        raise ValueError(f"{os.fspath(path)} {rule}")
    av = package("av", "audio")
    try:
        with av.open(os.fspath(path)) as container:
            if not (_track(container, "audio") or _track(container, "video")):
                raise ValueError(f"{os.fspath(path)} must have sound or pictures, got neither")
            yield container
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{os.fspath(path)} must be whole sound or video that FFmpeg reads, got "
            f"{error.strerror}: play it to see, then copy or convert it again"
        ) from error


def _track(container: Any, kind: str) -> Any:
    """Return the first track of a kind that moves, or None."""
    av = package("av", "audio")
    for stream in getattr(container.streams, kind):
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def _decoded(
    path: str | os.PathLike[str], kind: str, start: float, stop: float | None
) -> Iterator[tuple[float, Any]]:
    """Yield the time and the frames of a track between two times, to the frame."""
    check_real("start", start)
    stop = math.inf if stop is None else stop
    if not stop > start:
        raise ValueError(f"stop must be above start, {start}, got {stop}")
    with _opened(path) as container:
        stream = _track(container, kind)
        if stream is None:
            return
        origin = (container.start_time or 0) / 1e6
        if start > 0:
            container.seek(round((start + origin) * 1e6))
        end = start
        try:
            for frame in container.decode(stream):
                time = end if frame.time is None else frame.time - origin
                if kind == "audio":
                    end = time + frame.samples / frame.sample_rate
                else:
                    end = time + float(1 / (stream.average_rate or 25))
                if time >= stop:
                    return
                if end <= start or (kind == "video" and time < start - 1e-6):
                    continue
                yield time, frame
        except package("av", "audio").error.FFmpegError as error:
            raise ValueError(
                f"{os.fspath(path)} must be whole, got {error.strerror} in {kind} at {end:.2f} s: "
                "copy or convert it again, or take what is sound by start and stop"
            ) from error
        if container.format.name in _GUESSED:
            return
        if stream.duration is not None:
            promised = (
                float((stream.duration + (stream.start_time or 0)) * stream.time_base) - origin
            )
        else:
            promised = (container.duration or 0) / 1e6
        promised *= _cut_short(Path(path))
        if min(stop, promised) - end > 1.0:
            raise ValueError(
                f"{os.fspath(path)} must be whole, got {kind} to {end:.2f} s of {promised:.2f}: "
                f"copy it again, or take what is there by stop={max(end - 0.01, 0.01):.2f}"
            )


def _floats(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    return samples.astype(np.float32) / np.float32(32768)


def _quietest(samples: NDArray[np.int16]) -> int:
    """Return where the sound of the last sixth is least, to 25 ms."""
    step = RATE // 40
    late = samples[len(samples) * 5 // 6 :]
    if len(late) < 2 * step:
        return len(samples)
    energy = np.square(_floats(late[: len(late) // step * step]).reshape(-1, step)).sum(axis=1)
    return len(samples) - len(late) + int(energy.argmin()) * step + step // 2
