"""One call from features to a prediction, from Python and from the command line."""

import io
import json
import os
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from tdmer import TDMER, Classification, MultiLabel, Predictor, Sentiment
from tdmer.__main__ import main
from tdmer.data import MultimodalDataset, Sample, collate, from_sequences, write_store
from tdmer.encoders import EncodedTDMER, PretrainedEncoder
from tdmer.features import Extractor, Face, LogMel, TextStates, Whisper, Word, audio_blocks

DIMS = {"video": 3, "text": 6, "audio": 4}
TASKS = [
    Sentiment((-1, 0, 1.5), l1_weight=0.5),
    Classification(3, classes=["glad", "sad", "calm"]),
    Classification(3),
    MultiLabel(3, classes=["glad", "sad", "calm"]),
]


def make_model(classes=3):
    torch.manual_seed(0)
    model = TDMER(DIMS, classes, width=8, heads=2)
    with torch.no_grad():
        for x in model.parameters():  # so that classes and branches differ
            x.add_(0.3 * torch.randn_like(x))
    return model


def make_samples():
    rng = np.random.default_rng(0)

    def sample(**steps):
        return {m: rng.normal(size=(t, DIMS[m])).astype(np.float32) for m, t in steps.items()}

    damaged = sample(text=3, audio=2, video=1)
    damaged["audio"][1, 2], damaged["video"][0, 0] = np.nan, -np.inf
    return [
        sample(text=5, audio=9, video=2),
        sample(audio=1),
        damaged,
        {"text": rng.normal(size=6), "audio": None, "video": np.empty((0, 3))},
    ]


def as_sample(given):
    """Return what a data set would hold, made by hand."""
    inputs = {}
    for m, width in DIMS.items():
        x = given.get(m)
        x = np.empty((0, width)) if x is None else np.atleast_2d(x)
        inputs[m] = torch.tensor(x, dtype=torch.float32)
    return Sample(inputs)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(make_model(), TASKS[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(place, task=TASKS[1])
    return place


def figures(prediction):
    """Return every figure of a prediction in one list."""
    found = list(prediction.probabilities.values())
    for branch in prediction.branches.values():
        found += [branch.weight, branch.confidence or 0.0, *branch.probabilities.values()]
    return found


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_it_is_what_the_training_path_gives(task):
    model, samples = make_model(), make_samples()
    state = torch.get_rng_state()
    found = Predictor(model.train(), task)(samples, ids=list("abcd"))
    assert torch.equal(torch.get_rng_state(), state)
    batch = collate([as_sample(sample) for sample in samples])
    with torch.no_grad():
        output = model.eval()(batch.inputs, batch.masks)
    wanted = {"": output.logits, **output.branch_logits}
    for row, prediction in enumerate(found):
        assert prediction.id == "abcd"[row]
        assert list(prediction.probabilities) == task.names
        missing = [
            m for m, has in zip(model.modalities, output.present[row], strict=True) if not has
        ]
        assert prediction.missing == missing
        assert list(prediction.branches) == [b for b in ("common", *DIMS) if b not in missing]
        for name, part in {"": prediction, **prediction.branches}.items():
            logits = wanted[name][row : row + 1]
            expected = task.probabilities(logits)[0].tolist()
            np.testing.assert_allclose(list(part.probabilities.values()), expected, atol=1e-6)
            if isinstance(task, Sentiment):
                assert part.prediction == pytest.approx(task.predict(logits).item(), abs=1e-6)
            elif isinstance(task, Classification):
                assert part.prediction == task.names[logits.argmax()]
            else:
                assert part.prediction == [task.names[k] for k in range(3) if logits[0, k] >= 0]
        for name, branch in prediction.branches.items():
            assert branch.weight == pytest.approx(output.weights[name][row].item(), abs=1e-6)
            own = output.private.confidence[row]
            place = model.modalities.index(name) if name != "common" else None
            expected = None if place is None else pytest.approx(own[place].item(), abs=1e-6)
            assert branch.confidence == expected


def test_one_or_many_is_the_same(predictor, monkeypatch):
    samples = make_samples()
    together = predictor(samples)
    monkeypatch.setattr("tdmer.prediction.BATCH", 3)
    for sample, one, other in zip(samples, together, predictor(iter(samples)), strict=True):
        alone = predictor(sample)
        assert alone.id == "0"
        np.testing.assert_allclose(figures(alone), figures(one), atol=1e-5)
        np.testing.assert_allclose(figures(other), figures(one), atol=1e-5)
    assert predictor(samples[0], ids=["clip"]).id == "clip"
    assert predictor([]) == []


@pytest.mark.parametrize("form", [torch.from_numpy, np.ndarray.tolist, np.float64])
def test_arrays_of_any_kind(predictor, form):
    sample = make_samples()[0]
    given = {m: form(x) for m, x in sample.items()}
    np.testing.assert_allclose(figures(predictor(given)), figures(predictor(sample)), atol=1e-6)


def test_a_data_set_keeps_its_names(predictor):
    samples = make_samples()
    columns = {m: [sample.get(m) for sample in samples[:3]] for m in ("text", "audio")}
    data = from_sequences(columns, ids=["a", "b", "c"])
    found = predictor(data)
    assert [prediction.id for prediction in found] == ["a", "b", "c"]
    assert found[0].missing == ["video"]
    alone = predictor({m: samples[0][m] for m in columns})
    np.testing.assert_allclose(figures(found[0]), figures(alone), atol=1e-5)


def test_a_saved_model_brings_its_task(folder):
    predictor = Predictor.from_pretrained(folder)
    assert predictor.task.config == TASKS[1].config
    sample = make_samples()[0]
    assert predictor(sample) == Predictor(make_model(), TASKS[1])(sample)
    assert Predictor(TDMER.from_pretrained(folder), TASKS[0])(sample).task == "Sentiment"


class Letters:
    """A part for text: the number of a word's letters, and of its vowels."""

    columns = [str(number) for number in range(6)]  # noqa: RUF012

    def __call__(self, words):
        rows = [[len(word), sum(map(word.count, "aeiou")), 1, 0, 0, 0] for word in words]
        return np.array(rows, np.float32).reshape(-1, 6)


def write_wav(path, seconds=0.5, hz=440):
    samples = 9000 * np.sin(2 * np.pi * hz * np.arange(round(16_000 * seconds)) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def test_texts_and_recordings_go_through_the_extractor(folder, tmp_path):
    pytest.importorskip("av", reason="PyAV decodes")
    path, mel = write_wav(tmp_path / "clip.wav"), LogMel(bands=4)
    extractor = Extractor(text=Letters(), audio=mel)
    predictor = Predictor.from_pretrained(folder, extractor=extractor)
    features = extractor(path, "such a day").inputs
    assert {m: x.shape for m, x in features.items()} == {"text": (3, 6), "audio": (48, 4)}
    wanted = predictor(features)
    assert predictor({"text": "such a day", "audio": path}) == wanted
    video = make_samples()[0]["video"]
    assert predictor({"text": "such a day", "video": video}).missing == ["audio"]
    found = predictor([{"recording": path, "text": "such a day"}, features, {"text": "so"}])
    np.testing.assert_allclose(figures(found[0]), figures(wanted), atol=1e-5)
    assert found[2].missing == ["video", "audio"]
    silent = predictor({"recording": path, "text": ""})
    assert silent.notes == {"text": "no words"}
    assert str(silent).endswith("missing: video, text (no words)")
    with pytest.raises(ValueError, match=r"transcript must be given, .* neither for .*clip\.wav"):
        predictor(path)
    hears = replace(extractor, speech=lambda samples: [Word("so", 0.1, 0.2)])
    heard = Predictor.from_pretrained(folder, extractor=hears)([str(path)])
    np.testing.assert_allclose(
        figures(heard[0]), figures(predictor(features | {"text": Letters()(["so"])})), atol=1e-5
    )


# The check of types would ask for the columns, and so for the model.
@pytest.mark.usefixtures("unchecked")
def test_a_saved_model_knows_how_its_features_were_made(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV decodes")
    monkeypatch.chdir(tmp_path)
    for name in ("detector.tflite", "mesh.tflite", "bert"):
        Path(name).touch()
    path, model = write_wav(tmp_path / "clip.wav"), make_model()
    extractor = Extractor(
        speech=Whisper("small", "en", download=True),
        text=TextStates(Path("bert"), window=99),
        audio=LogMel(bands=4),
        video=Face("detector.tflite", tmp_path / "mesh.tflite"),
        fps=2,
    )
    model.save_pretrained("model", task=TASKS[1], extractor=extractor)
    again = TDMER.from_pretrained("model")
    again.save_pretrained("model")
    config = json.loads(Path("model/config.json").read_text())["extractor"]
    files = {"detector": "./detector.tflite", "mesh": f"{tmp_path}/mesh.tflite", "emotions": None}
    assert config == {
        "speech": {"name": "Whisper", "model": "small", "language": "en"},
        "text": {"name": "TextStates", "encoder": "./bert", "window": 99},
        "audio": {"name": "LogMel", "bands": 4},
        "video": {"name": "Face", **files, "threshold": 0.5},
        "fps": 2,
        "max_seconds": 3600.0,
    }
    made = Extractor.from_config(config)
    assert made.config == config
    assert not made.speech.download
    wanted = Predictor(model, TASKS[1])({"audio": extractor.audio(samples(path))[0]})
    predictor = Predictor.from_pretrained("model")
    assert predictor({"audio": path}) == wanted  # nothing else is looked for
    Path("models").mkdir()
    Path("mesh.tflite").rename("models/mesh.tflite")
    with pytest.raises(
        FileNotFoundError, match=r"mesh.tflite must be on this machine, .* by models"
    ):
        predictor(path)
    made = Extractor.from_config(config, "models")
    assert made.video.mesh == os.path.join("models", "mesh.tflite")
    monkeypatch.chdir("models")
    with pytest.raises(FileNotFoundError, match=r"^\./bert must be on this machine"):
        Predictor(again)({"text": "so"})
    for part in (Letters(), TextStates(len)):
        model.save_pretrained(tmp_path / "own", task=TASKS[1], extractor=Extractor(text=part))
        predictor = Predictor.from_pretrained(tmp_path / "own")
        assert predictor({"audio": np.ones(4)}).missing == ["video", "text"]
        with pytest.raises(
            ValueError, match=r"text was made by .* another program, (Letters|Text)"
        ):
            predictor({"text": "so"})


def samples(path):
    ((_, found),) = audio_blocks(path)
    return found


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Return a folder of a model with encoders of text and audio, and that model."""
    torch.manual_seed(0)
    size = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=5, intermediate_size=8, **size))
    known = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "such", "a", "day"])}
    words = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    words.pre_tokenizer = Split(" ", "isolated")  # two blanks are not one
    words.post_processor = TemplateProcessing(single="[UNK] $A", special_tokens=[("[UNK]", 1)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 16}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    convolutions = {"conv_dim": (4, 4), "conv_kernel": (10, 4), "conv_stride": (8, 40)}
    groups = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(intermediate_size=8, **convolutions, **groups, **size)
    encoders = {
        "text": PretrainedEncoder(bert, tokenizer, train="all"),
        "audio": PretrainedEncoder(Wav2Vec2Model(config)),
    }
    model = EncodedTDMER(encoders, TDMER({"video": 3, "text": 6, "audio": 6}, 3, width=8, heads=2))
    folder = tmp_path_factory.mktemp("encoded")
    model.eval().save_pretrained(folder, task=TASKS[1])
    return folder, model


def test_texts_and_recordings_go_through_the_encoders(encoded, tmp_path):
    pytest.importorskip("av", reason="PyAV decodes")
    folder, model = encoded
    path, video = write_wav(tmp_path / "clip.wav"), make_samples()[0]["video"]
    wave = samples(path)
    with torch.no_grad():
        inputs = {"text": torch.tensor([[1, 2, 1, 1, 3]]), "audio": torch.from_numpy(wave)[None]}
        output = model(inputs | {"video": torch.from_numpy(video)[None]})
    wanted = TASKS[1].probabilities(output.logits)[0].tolist()
    predictor = Predictor.from_pretrained(folder)
    for text in ("such  a", [1, 2, 1, 1, 3]):
        for audio in (path, wave):
            sample = {"text": text, "audio": audio, "video": video}
            found = predictor([sample, {"text": "day"}])[0]
            np.testing.assert_allclose(list(found.probabilities.values()), wanted, atol=1e-5)
    whole = predictor({"recording": path, "text": "such a night"})
    assert whole == predictor({"text": "such a night", "audio": path})
    silent = predictor({"recording": path, "text": ""})
    assert (silent.missing, silent.notes) == (["video", "text"], {"text": "no words"})
    with pytest.raises(ValueError, match="transcript must be given, or speech"):
        predictor(path)
    hears = Extractor(speech=lambda samples: [Word("such", 0.1, 0.2), Word("night", 0.3, 0.4)])
    heard = Predictor(model.train(), TASKS[1], extractor=hears)(path)
    assert heard == predictor({"text": "such night", "audio": path})
    with pytest.raises(ValueError, match=r"inputs\['video'\] must be features, since the model"):
        predictor({"video": path})
    model.encoders["audio"].sampling_rate = 8000
    with pytest.raises(ValueError, match="must hear 16000 Hz, got 8000 Hz: give waves"):
        Predictor(model, TASKS[1])({"audio": path})
    model.encoders["audio"].sampling_rate = 16_000


def test_json_has_these_names_and_no_others(folder):
    """As docs/predict.md lists them: other programs rely on them."""
    found = Predictor.from_pretrained(folder)([make_samples()[1]], ids=["clip"])[0].to_dict()
    assert json.loads(json.dumps(found)) == found
    names = ["id", "task", "prediction", "probabilities", "branches", "missing", "notes"]
    assert list(found) == names
    assert found["notes"] == {}
    assert (found["id"], found["task"]) == ("clip", "Classification")
    assert found["prediction"] in {"glad", "sad", "calm"}
    assert list(found["probabilities"]) == ["glad", "sad", "calm"]
    assert found["missing"] == ["video", "text"]
    assert list(found["branches"]) == ["common", "audio"]
    for branch in found["branches"].values():
        assert list(branch) == ["weight", "prediction", "probabilities", "confidence"]
    assert found["branches"]["common"]["confidence"] is None
    assert 0.0 < found["branches"]["audio"]["confidence"] < 1.0


def test_the_table_has_every_branch(predictor):
    prediction = predictor([make_samples()[1]], ids=["clip"])[0]
    lines = str(prediction).splitlines()
    assert lines[0] == f"clip: {prediction.prediction:.3f}"
    assert lines[1].startswith("probabilities: -1 0.")
    assert lines[2].split() == ["branch", "weight", "alone", "confidence"]
    common, audio = prediction.branches.values()
    assert lines[3].split() == ["common", f"{common.weight:.3f}", f"{common.prediction:.3f}"]
    assert lines[4].split()[3] == f"{audio.confidence:.3f}"
    assert lines[5:] == ["missing: video, text"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    found = Predictor(make_model().to(dtype), TASKS[0])(make_samples())
    assert sum(found[0].probabilities.values()) == pytest.approx(1.0, abs=1e-5)


# Bad input, beside the rows of tests/test_bad_inputs.py


def test_a_task_is_needed_and_must_fit(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="task must be given for a model that was saved without"):
        Predictor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="task must have the 3 classes of the model, got 7"):
        Predictor(make_model(), Sentiment())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for task in (
        {"name": "eval", "source": "1"},
        {"name": "Classification", "num_classes": "3"},
        {},
    ):
        path.write_text(json.dumps(config | {"task": task}))
        with pytest.raises(ValueError, match="task must be the config of one of"):
            Predictor.from_pretrained(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_data_set_must_fit(predictor):
    with pytest.raises(ValueError, match=r"inputs must be of \['video', .* got \['smell'\]"):
        predictor(MultimodalDataset({"smell": np.ones((1, 2, 3))}, [0.0]))
    with pytest.raises(ValueError, match=r"inputs of 'text' must have the 6 features .* got 5"):
        predictor(MultimodalDataset({"text": np.ones((1, 2, 5))}, [0.0]))
    with pytest.raises(ValueError, match="ids must be None for a data set, which has its own"):
        predictor(MultimodalDataset({"text": np.ones((1, 2, 6))}, [0.0]), ids=["clip"])
    with pytest.raises(ValueError, match="inputs must have a step in every sample, got none in"):
        predictor(MultimodalDataset({"text": [np.ones((0, 6))]}, [0.0]))


# The command line


@pytest.fixture
def files(tmp_path):
    paths = []
    for number, sample in enumerate(make_samples()[:3]):
        paths.append(tmp_path / f"clip{number}.npz")
        np.savez(paths[-1], **sample)
    return [str(path) for path in paths]


def test_the_command_gives_the_same_figures(folder, files, capsys):
    main(["predict", "--model", str(folder), "--features", *files, "--json"])
    wanted = Predictor.from_pretrained(folder)(make_samples()[:3], ids=["clip0", "clip1", "clip2"])
    assert json.loads(capsys.readouterr().out) == [x.to_dict() for x in wanted]
    main(["predict", "--model", str(folder), "--features", *files])
    assert capsys.readouterr().out == "\n\n".join(map(str, wanted)) + "\n"


def test_the_command_reads_a_store(folder, tmp_path, capsys):
    samples = make_samples()
    data = from_sequences({m: [sample.get(m) for sample in samples[:3]] for m in DIMS})
    write_store(tmp_path / "store", {"test": data})
    arguments = ["predict", "--model", str(folder), "--features", str(tmp_path / "store"), "--json"]
    main(arguments)
    wanted = Predictor.from_pretrained(folder)(data)
    assert json.loads(capsys.readouterr().out) == [x.to_dict() for x in wanted]
    with pytest.raises(SystemExit, match=r"--split must be one of \['test'\], got 'dev'"):
        main([*arguments, "--split", "dev"])


# The check of types would ask for the columns, and so for the model.
@pytest.mark.usefixtures("unchecked")
def test_the_command_says_which_model_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bert").touch()
    extractor = Extractor(text=TextStates("bert"))
    make_model().save_pretrained("model", task=TASKS[1], extractor=extractor)
    Path("models").mkdir()
    Path("bert").rename("models/bert")
    arguments = ["predict", "--model", "model", "--text", "so"]
    with pytest.raises(
        SystemExit, match=r"\./bert must be on this machine, .* holds bert by models"
    ):
        main(arguments)
    with pytest.raises(SystemExit, match="models/bert"):  # found, and no model
        main([*arguments, "--models", "models"])


def test_the_command_takes_texts_and_recordings(tmp_path, capsys):
    pytest.importorskip("av", reason="PyAV decodes")
    model, extractor = make_model(), Extractor(audio=LogMel(bands=4))
    model.save_pretrained(tmp_path, task=TASKS[1], extractor=extractor)
    paths = [str(write_wav(tmp_path / f"{hz}.wav", hz=hz)) for hz in (300, 900)]
    predictor = Predictor.from_pretrained(tmp_path)
    wanted = predictor(paths, ids=["300", "900"])
    arguments = ["predict", "--model", str(tmp_path), "--json"]
    for option in ("--recording", "--audio"):
        main([*arguments, option, *paths])
        assert json.loads(capsys.readouterr().out) == [x.to_dict() for x in wanted]
    main([*arguments, "--recording", paths[1], "--transcript", "such a day"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["probabilities"] == pytest.approx(wanted[1].probabilities, abs=1e-5)
    with pytest.raises(SystemExit, match=r"inputs\['text'\] must be features, since the model"):
        main([*arguments, "--text", "such a day", "--audio", paths[0]])
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(SystemExit, match=r"^tdmer predict: .*empty.mp4 must be sound or video"):
        main([*arguments, "--recording", paths[0], str(tmp_path / "empty.mp4")])
    for wrong in ([], ["--features", "x.npz", "--text", "so"], ["--audio", *paths, "--text", "so"]):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, *wrong])
        assert "error: give" in capsys.readouterr().err


class Gadget:
    def __reduce__(self):
        return print, ("this would run",)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "No such file"),
        (write(b""), "must be a whole .npz"),
        (write(b"no archive"), "must be a whole .npz"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "must be a whole .npz"),
        (write(npy(np.ones((2, 6)))), "must be a whole .npz"),
        (lambda path: np.savez(path, text=np.array([Gadget()])), "must be a whole .npz"),
        (lambda path: np.savez(path), "inputs must hold a step of one of"),
        (lambda path: np.savez(path, text=np.ones((2, 5))), "must have the 6 features"),
        (lambda path: np.savez(path, smell=np.ones((2, 5))), "inputs must be of ['video'"),
        (lambda path: np.savez(path, text=np.array("such a day")), "must be numbers of shape"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    folder, files, tmp_path, damage, reason, capsys
):
    damage(tmp_path / "clip0.npz")
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--model", str(folder), "--features", files[0]])
    message = caught.value.code
    assert isinstance(message, str)  # which Python prints, and exits with 1
    assert message.startswith("tdmer predict: ")
    assert reason in message
    assert "\n" not in message
    assert capsys.readouterr().out == ""


def test_the_module_runs(tmp_path):
    command = [sys.executable, "-m", "tdmer", "predict", "--model", str(tmp_path / "none")]
    done = subprocess.run([*command, "--features", "x.npz"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tdmer predict: name must be a folder or 'user/name' on the Hub")
    assert done.stderr.count("\n") == 1
