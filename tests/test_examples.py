"""The examples run, and keep their promises about what they write."""

import csv
import importlib.util
import itertools
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tdmer import TDMER, LossTerms, Predictor, Sentiment, TDMERLoss
from tdmer.data import MultimodalDataset, load_mmsa, open_store, write_store

pytest.importorskip("accelerate", reason="the examples need the extra 'examples'")
from accelerate.state import AcceleratorState

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = ["--width", "8", "--heads", "2", "--steps", "4"]  # two epochs
METRICS = {"loss", "mae", "corr", "acc7", "acc5", "acc2_non0", "f1_non0", "acc2_has0", "f1_has0"}


def load(name, monkeypatch):
    """Import a script as Python does that runs it: with its folder on the path."""
    path = EXAMPLES / f"{name}.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(monkeypatch, module, *arguments):
    """Run a script in this process, which may have run others."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    try:
        module.main()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def run(monkeypatch, name, *arguments):
    call(monkeypatch, load(name, monkeypatch), *arguments)


def visible(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def rewrite(source, folder, **labels):
    """Write a file of other labels."""
    splits = pickle.loads(source.read_bytes())
    for split, values in labels.items():
        splits[split]["regression_labels"] = values
    path = folder / "other.pkl"
    path.write_bytes(pickle.dumps(splits))
    return path


def write_mmsa(path):
    """Write a small file in MMSA's layout, whose text carries the label."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 48), ("valid", 24), ("test", 24)):
        labels = rng.uniform(-3, 3, size=count).astype(np.float32)
        noise = rng.normal(size=(count, 6, 4)).astype(np.float32)
        splits[split] = {
            "text": labels[:, None, None] + 0.1 * noise,
            "audio": rng.normal(size=(count, 5, 3)).astype(np.float32),
            "vision": rng.normal(size=(count, 7, 2)).astype(np.float32),
            "regression_labels": labels,
            "id": [f"{split}$_${number}" for number in range(count)],
        }
    path.write_bytes(pickle.dumps(splits))
    return path


def write_npz(path):
    """Write 16 actors, whose face and voice together carry one of four emotions."""
    rng = np.random.default_rng(0)
    emotion = np.tile([0, 1, 2, 3, 0], 16)
    face = rng.normal(size=(80, 3)).astype(np.float32)
    face[:, 0] += 4 * (emotion % 2)
    face[0] = 0
    voice = rng.normal(size=(80, 3, 2)).astype(np.float32)
    voice[:, :, 0] += 4 * (emotion // 2)[:, None]
    voice[::2, 2] = 0  # pads
    actor = np.repeat(3 * np.arange(16), 5)[::-1]
    np.savez(path, face=face, voice=voice, emotion=emotion, actor=actor)
    return path


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def mmsa(tmp_path_factory):
    return write_mmsa(tmp_path_factory.mktemp("data") / "small.pkl")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mmsa):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "saved"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "train", "--data", mmsa, "--out", folder, *QUICK)
    return folder


def test_a_run_writes_what_it_says_and_can_be_loaded(monkeypatch, saved, mmsa, tmp_path, capsys):
    assert visible(saved) == {
        *("run.json", "metrics.json"),
        *("config.json", "model.safetensors", "README.md"),
    }
    found = json.loads((saved / "metrics.json").read_text())
    assert found.keys() == {
        "epoch", "step", "modalities", "train", "valid", "test", "weights", "branches", "history",
    }  # fmt: skip
    assert set(found["test"]) == set(found["valid"]) == METRICS
    assert [(row["epoch"], row["step"]) for row in found["history"]] == [(0, 2), (1, 4)]
    for row in found["history"]:
        assert tuple(row["train"]) == LossTerms._fields
        assert row["weights"].keys() == {"common", "text", "audio", "video"}
    # The chosen epoch is the one that was best in validation.
    maes = [row["valid"]["mae"] for row in found["history"]]
    assert found["epoch"] == int(np.argmin(maes))
    assert found["valid"] == found["history"][found["epoch"]]["valid"]

    config = json.loads((saved / "run.json").read_text())
    assert config["model"]["dims"] == {"text": 4, "audio": 3, "video": 2}
    assert config["data"].keys() == {mmsa.name}
    assert len(config["data"][mmsa.name]) == 64
    card = (saved / "README.md").read_text()
    assert f"{mmsa.name}, SHA-256 {config['data'][mmsa.name]}" in card
    assert f"| mae | {found['test']['mae']:.4g} |" in card
    assert TDMER.from_pretrained(saved).options["width"] == 8
    assert Predictor.from_pretrained(saved).task.config == config["task"]

    out = tmp_path / "predictions.csv"
    run(monkeypatch, "predict", saved, "--data", mmsa, "--out", out)
    assert f"mae {found['test']['mae']:.4f}" in capsys.readouterr().out
    predictions = list(csv.DictReader(out.read_text().splitlines()))
    errors = [abs(float(row["label"]) - float(row["prediction"])) for row in predictions]
    assert len(predictions) == 24
    assert np.mean(errors) == pytest.approx(found["test"]["mae"], abs=1e-3)
    assert set(predictions[0]) == {
        "id", "label", "prediction", "common", "text", "audio", "video",
    }  # fmt: skip
    mean = np.mean([float(row["text"]) for row in predictions])
    assert mean == pytest.approx(found["weights"]["text"], abs=1e-3)


def test_the_losses_are_means_over_the_samples(monkeypatch, tmp_path, mmsa):
    """Of 48 samples in batches of 10 at most, three batches have 10 and two have 9."""
    script = load("train", monkeypatch)
    batches = []

    class Recorded(TDMERLoss):
        def forward(self, output, labels):
            batches.append((len(labels), super().forward(output, labels).total.item()))
            return super().forward(output, labels)

    monkeypatch.setattr(script, "parts_of", lambda system: (TDMER, Recorded))
    more = ["--batch-size", 10, "--steps", 10]
    call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, *QUICK, *more)
    found = json.loads((tmp_path / "metrics.json").read_text())["history"]
    for row, epoch in zip(found, (batches[:5], batches[5:]), strict=True):
        assert sorted(size for size, _ in epoch) == [9, 9, 10, 10, 10]
        mean = sum(size * total for size, total in epoch) / 48
        assert row["train"]["total"] == pytest.approx(mean, rel=1e-5)


def test_batches_are_of_similar_length_and_each_epoch_deals_anew(monkeypatch, tmp_path):
    script = load("train", monkeypatch)
    batches = []

    class Recorded(TDMERLoss):
        def forward(self, output, labels):
            lengths = sum(mask.sum(dim=1) for mask in output.masks.values())
            batches.append((lengths.min().item(), lengths.max().item(), set(labels.tolist())))
            return super().forward(output, labels)

    monkeypatch.setattr(script, "parts_of", lambda system: (TDMER, Recorded))
    call(monkeypatch, script, "--out", tmp_path, *QUICK, "--batch-size", 100, "--steps", 16)
    epochs = batches[:8], batches[8:]
    for epoch in epochs:
        assert len(epoch) == 8
        ends = sorted((low, high) for low, high, _ in epoch)
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ends))
    first, second = ({frozenset(labels) for *_, labels in epoch} for epoch in epochs)
    assert not first & second
    assert set().union(*first) == set().union(*second)


def test_processes_share_a_batch_evenly(monkeypatch, tmp_path):
    script = load("train", monkeypatch)
    monkeypatch.setattr(script.accelerate.Accelerator, "num_processes", 3)
    more = ["--batch-size", 32, "--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, script, *more)
    rule = "--batch-size must be a multiple of the number of processes, 3, got 32"
    assert caught.value.code == f"train.py: {rule}"
    assert not (tmp_path / "run").exists()


def test_the_test_split_is_read_once_with_the_best_epoch(monkeypatch, tmp_path, mmsa):
    """Validation figures that grow again make the first epoch the best one."""
    script = load("train", monkeypatch)
    read, measure = [], script.measure

    def worsening(model, task, data, accelerator):
        found = measure(model, task, data, accelerator)
        weight = model.classifier[0].weight.detach().clone()
        read.append((data.ids[0].split("$")[0], weight))
        return found._replace(metrics=found.metrics | {"mae": float(len(read))})

    monkeypatch.setattr(script, "measure", worsening)
    call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, *QUICK, "--lr", 0.1)
    assert [split for split, _ in read] == ["valid", "valid", "test"]
    assert torch.equal(read[2][1], read[0][1])
    assert not torch.equal(read[1][1], read[0][1])
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["classifier.0.weight"], read[0][1])


def test_of_equal_epochs_the_first_is_kept(monkeypatch, tmp_path, mmsa):
    script = load("train", monkeypatch)
    found = script.measure.__globals__["Measured"](["text"], dict.fromkeys(METRICS, 1.0), {}, {})
    monkeypatch.setattr(script, "measure", lambda *_: found)
    call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, *QUICK)
    assert json.loads((tmp_path / "metrics.json").read_text())["epoch"] == 0


def test_what_is_undefined_is_null(monkeypatch, tmp_path, mmsa):
    path = rewrite(mmsa, tmp_path, test=np.zeros(24, dtype=np.float32))
    run(monkeypatch, "train", "--data", path, "--out", tmp_path / "run", *QUICK)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "run" / "metrics.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found["test"]["corr"] is None
    assert found["test"]["mae"] > 0


def test_json_has_no_infinity_and_keeps_all_else(monkeypatch, tmp_path):
    module = load("run_folder", monkeypatch)
    content = {"a": [math.inf, 1.5], "b": {"c": -math.inf, "e": math.nan}, "d": [3, True, "inf"]}
    written = module.to_json(content)
    assert json.loads(written) == {
        "a": [None, 1.5],
        "b": {"c": None, "e": None},
        "d": [3, True, "inf"],
    }
    (tmp_path / "file").write_bytes(written)
    assert math.isnan(module.from_json(tmp_path / "file")["b"]["c"])


def test_a_store_is_data_like_its_source(saved, mmsa, tmp_path, monkeypatch):
    splits = load_mmsa(mmsa)
    write_store(tmp_path / "store", splits)
    extractor = {"audio": {"name": "LogMel", "bands": 4}}  # as extract_folder writes it
    (tmp_path / "store" / "recordings.json").write_text(json.dumps({"extractor": extractor}))
    out = ["--out", tmp_path / "run"]
    run(monkeypatch, "train", "--data", tmp_path / "store", *out, *QUICK)
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (saved / "metrics.json").read_bytes()
    hashed = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert set(hashed) == {path.name for path in (tmp_path / "store").iterdir()}
    assert TDMER.from_pretrained(out[1]).extractor_config == extractor
    for source in (mmsa, tmp_path / "store"):
        to = tmp_path / f"{source.name}.csv"
        run(monkeypatch, "predict", saved, "--data", source, "--split", "valid", "--out", to)
    assert (tmp_path / "small.pkl.csv").read_text() == (tmp_path / "store.csv").read_text()

    write_store(tmp_path / "two", {split: splits[split] for split in ("train", "test")})
    message = refusal(monkeypatch, "train", "--data", tmp_path / "two", *out, *QUICK)
    assert "must have the splits ['train', 'valid', 'test'], got ['train', 'test']" in message
    (tmp_path / "empty").mkdir()
    for script, first in (("train", []), ("predict", [saved])):
        message = refusal(monkeypatch, script, *first, "--data", tmp_path / "empty", *out)
        assert "store.json" in message


def test_groups_are_normalised_in_training_and_in_predictions(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    actor, emotion = np.repeat(np.arange(16), 12), np.tile([0, 1], 96)
    noise = {name: rng.normal(size=(192, 4)) for name in ("face", "voice")}
    # Speakers differ by more than emotions do.
    shifts = rng.normal(scale=50, size=(16, 4))[actor]
    features = {name: shifts + 2 * emotion[:, None] + x for name, x in noise.items()}
    np.savez(tmp_path / "x.npz", **features, emotion=emotion, actor=actor)
    options = ["--data", tmp_path / "x.npz", "--label", "emotion", "--group", "actor"]
    options += ["--split", "folds:4/0", "--steps", "24", "--width", "8", "--warmup", "4"]
    accuracy = {}
    for name, more in (
        ("raw", []),
        ("voice", ["--normalize-groups", "voice"]),
        ("normalised", ["--normalize-groups"]),
    ):
        folder = tmp_path / name
        run(monkeypatch, "train", "--out", folder, *options, *more, "--average", "0.5")
        accuracy[name] = json.loads((folder / "metrics.json").read_text())["test"]["accuracy"]
        card = (folder / "README.md").read_text()
        normalised = {"raw": [], "voice": ["voice"], "normalised": ["face, voice"]}[name]
        assert re.findall("feature of (.*) was standardised within each group", card) == normalised
        out = ["--out", tmp_path / "predictions.csv"]
        run(monkeypatch, "predict", folder, "--data", tmp_path / "x.npz", *out)
        assert f"accuracy {accuracy[name]:.4f}" in capsys.readouterr().out
    assert accuracy["normalised"] > 0.9 > 0.7 > accuracy["raw"]
    assert accuracy["voice"] > 0.8


def refusal(monkeypatch, name, *arguments):
    """Return the one line that a script stops with."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, name, *arguments)
    message = caught.value.code
    assert isinstance(message, str)  # which Python prints, and exits with 1
    assert "\n" not in message
    return message


class Gadget:
    def __reduce__(self):
        return print, ("this would run",)


def edit_run(**changes):
    def edit(folder):
        path = folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_task(**task):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task": task}))

    return edit


def edit_weights(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


DIMS = {"text": 4, "audio": 3, "video": 2}
SCORES = {"name": "Sentiment", "l1_weight": 0.5}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, "name must be a folder"),
        (lambda folder: (folder / "run.json").unlink(), "No such file"),
        (
            lambda folder: (folder / "run.json").write_text("{"),
            "must be one that train.py wrote",
        ),
        (lambda folder: (folder / "run.json").write_text("[]"), "must be one that train.py"),
        (lambda folder: (folder / "run.json").write_bytes(b"\xff"), "must be one that train.py"),
        (lambda folder: (folder / "run.json").write_text("[" * 10**5), "must be one that train"),
        (edit_task(**SCORES, values="many"), "task must be the config of one of"),
        (edit_task(**SCORES, values=[-1, 0, 1]), "have the 7 classes of the model, got 3"),
        (edit_task(name="Classification", num_classes=8), "7 classes of the model, got 8"),
        (edit_task(name="MultiLabel", num_classes=7), "labels must"),
        (edit_task(name="eval", source="1"), "task must be the config of one of"),
        (edit_run(samples=3), "must be one that train.py wrote"),
        (edit_run(samples={"split": "folds:2/0"}), "must be official, folds:K/k"),
        (edit_run(samples={"code": "os.system"}), "code"),
        (edit_task(**SCORES, values=[3, 2, 1]), "increas"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there is no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "must be a whole"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-1]
            ),
            "must be a whole",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Gadget())),
            "must be a whole",
        ),
        (edit_weights(lambda tensors: tensors.popitem()), "got None"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_folder_that_train_did_not_write_is_refused(
    monkeypatch, tmp_path, saved, mmsa, damage, reason, capsys
):
    folder = shutil.copytree(saved, tmp_path / "run")
    damage(folder)
    out = tmp_path / "predictions.csv"
    assert reason in refusal(monkeypatch, "predict", folder, "--data", mmsa, "--out", out)
    assert not out.exists()
    assert "this would run" not in capsys.readouterr().out


def test_predict_names_what_does_not_fit(monkeypatch, tmp_path, saved, mmsa):
    out = ["--out", tmp_path / "predictions.csv"]
    data = ["--data", mmsa]
    assert "one of ['train'" in refusal(
        monkeypatch, "predict", saved, *data, "--split", "dev", *out
    )
    for drop in (["hearing"], ["text", "audio", "video"]):
        message = refusal(monkeypatch, "predict", saved, *data, *out, "--drop", *drop)
        assert "--drop must be some, not all, of ['text', 'audio', 'video']" in message
    splits = pickle.loads(mmsa.read_bytes())
    for split in splits.values():
        split["audio"] = split["audio"][..., :2]
    other = tmp_path / "other.pkl"
    other.write_bytes(pickle.dumps(splits))
    message = refusal(monkeypatch, "predict", saved, "--data", other, *out)
    assert "'audio': 3" in message
    assert "got {'audio': 2}" in message
    message = refusal(monkeypatch, "predict", saved, "--data", tmp_path / "none.pkl", *out)
    assert "none.pkl" in message
    message = refusal(monkeypatch, "predict", saved, *data, "--out", tmp_path / "no" / "file.csv")
    assert "file.csv" in message


def test_without_labels_there_are_predictions_and_no_metrics(
    monkeypatch, tmp_path, saved, mmsa, capsys
):
    splits = pickle.loads(mmsa.read_bytes())
    splits["test"]["regression_labels"][:] = np.nan
    path, out = tmp_path / "unlabelled.pkl", tmp_path / "predictions.csv"
    path.write_bytes(pickle.dumps(splits))
    run(monkeypatch, "predict", saved, "--data", path, "--out", out)
    assert "mae" not in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 25


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--data", "none.pkl"], "none.pkl"),
        (["--width", "9"], "heads"),
        (["--values", "3", "1"], "increas"),
        (["--alpha", "-1"], "alpha"),
        (["--split", "folds:2/0"], "--split must be official, folds:K/k with K at least 3"),
        (["--split", "folds:4/4"], "--split must be official, folds:K/k with K at least 3"),
        (["--split", "random"], "--split must be official, folds:K/k with K at least 3"),
        (["--modalities", "text", "smell"], "some of ['text', 'audio', 'video'], got ['text', 's"),
        (["--out", __file__], "exists"),
        (["--values", "0"], "two or more"),
        (["--lr", "9e5", "--warmup", "1"], "the loss is nan in epoch 0: try a smaller --lr"),
    ],
)
def test_train_names_what_is_wrong(monkeypatch, tmp_path, mmsa, options, reason):
    arguments = ["--data", mmsa, "--out", tmp_path / "run", *QUICK, *options]
    assert reason in refusal(monkeypatch, "train", *arguments)


def test_predictions_that_are_no_numbers_end_a_run(monkeypatch, tmp_path, mmsa):
    script = load("train", monkeypatch)
    forward = TDMER.forward

    def broken(model, inputs, masks):
        output = forward(model, inputs, masks)
        return output if model.training else output._replace(logits=output.logits * math.nan)

    monkeypatch.setattr(TDMER, "forward", broken)
    with pytest.raises(SystemExit, match="a prediction is NaN or infinite: try a smaller --lr"):
        call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, *QUICK)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_without_labels_is_refused(monkeypatch, tmp_path, mmsa, split):
    count = {"train": 48, "valid": 24}[split]
    path = rewrite(mmsa, tmp_path, **{split: np.full(count, np.nan, np.float32)})
    out = tmp_path / "run"
    message = refusal(monkeypatch, "train", "--data", path, "--out", out, *QUICK)
    assert f"the split '{split}' must have a label, got none" in message
    assert not out.exists()


@pytest.mark.usefixtures("unchecked")
def test_labels_that_are_neither_scores_nor_classes_are_refused(monkeypatch, tmp_path, saved):
    inputs = {m: torch.ones(3, 2, width) for m, width in DIMS.items()}
    for labels, *reasons in (
        (torch.zeros(3, 2), "shape", "shape"),
        (torch.zeros(3, 2).long(), "float", "shape"),
        (torch.arange(3) - 5, "float", "must be classes in [0, 2)"),
    ):
        store = tmp_path / f"{labels.dtype}{labels.ndim}"
        data = MultimodalDataset(inputs, labels)
        write_store(store, dict.fromkeys(("train", "valid", "test"), data))
        scripts = (("predict", [saved]), ("train", []))
        for (script, first), reason in zip(scripts, reasons, strict=True):
            out = ["--out", tmp_path / "out"]
            message = refusal(monkeypatch, script, *first, "--data", store, *out)
            assert f"{store}, train: labels" in message
            assert reason in message
            assert not (tmp_path / "out").exists()


def test_a_modality_that_no_training_sample_has_is_refused(monkeypatch, tmp_path):
    """Nothing is left that the next run would stumble over."""
    inputs = {"text": torch.ones(3, 2, 4), "audio": [torch.ones(0, 3)] * 3}
    data = MultimodalDataset(inputs, torch.zeros(3))
    write_store(tmp_path / "store", dict.fromkeys(("train", "valid", "test"), data))
    out = tmp_path / "run"
    message = refusal(monkeypatch, "train", "--data", tmp_path / "store", "--out", out, *QUICK)
    assert "'audio'" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--steps 0", "--steps: must be in [1, inf), got 0"),
        ("--steps many", "--steps: invalid int value: 'many'"),
        ("--warmup 0", "--warmup: must be in [1, inf), got 0"),
        ("--average 1", "--average: must be in [0, 1), got 1"),
        ("--patience 0", "--patience: must be in [1, inf), got 0"),
        ("--batch-size -1", "--batch-size: must be in [1, inf), got -1"),
        ("--accumulate 0", "--accumulate: must be in [1, inf), got 0"),
        ("--threads 0", "--threads: must be in [1, inf), got 0"),
        ("--seed -1", "--seed: must be in [0, inf), got -1"),
        ("--lr nan", "--lr: must be in [0, 1000000.0), got nan"),
        ("--lr 1e38", "--lr: must be in [0, 1000000.0), got 1e38"),
        ("--weight-decay -1", "--weight-decay: must be in [0, 1000000.0), got -1"),
        ("--modality-dropout 1", "--modality-dropout: must be in [0, 1), got 1"),
        ("--clip inf", "--clip: must be in [0, 1000000.0), got inf"),
        ("--without all", "--without: invalid choice: 'all'"),
        (
            "--modalities face --normalize-groups voice",
            "--normalize-groups: must be some of ['face'], got ['voice']",
        ),
        ("--resume --overwrite", "--overwrite: not allowed with argument --resume"),
    ],
)
def test_options_out_of_range_are_refused(monkeypatch, tmp_path, options, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "train", "--out", tmp_path / "run", *options.split())
    assert caught.value.code == 2
    assert f"argument {reason}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_options_reach_the_model_and_the_loss(monkeypatch, tmp_path, mmsa):
    script = load("train", monkeypatch)
    options = ["--activation", "tanh", "--kernel-size", 3, "--fusion", "mean", "--n-moments", 4]
    options += ["--input-dropout", "text=0.5,video=0,audio=0.8"]
    options += ["--alpha", 0.3, "--without", "con", "dp", "--values", "-3", "0", "3"]
    call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, *QUICK, *options)
    config = json.loads((tmp_path / "run.json").read_text())
    assert config["model"]["activation"] == "tanh"
    assert config["model"]["kernel_size"] == 3
    assert config["model"]["input_dropout"] == {"text": 0.5, "video": 0.0, "audio": 0.8}
    assert config["model"]["fusion"] == "mean"
    assert config["model"]["num_classes"] == 3
    assert config["loss"]["n_moments"] == 4
    assert config["loss"]["alpha"] == 0.3
    assert config["loss"]["without"] == ["con", "dp"]
    assert config["task"]["values"] == [-3, 0, 3]
    first = json.loads((tmp_path / "metrics.json").read_text())["history"][0]["train"]
    assert first["con"] == first["dp"] == 0 < first["dc"]


def test_a_run_can_be_repeated_and_options_change_it(monkeypatch, tmp_path, mmsa, saved):
    def metrics(folder, *options):
        run(monkeypatch, "train", "--data", mmsa, "--out", tmp_path / folder, *QUICK, *options)
        return json.loads((tmp_path / folder / "metrics.json").read_text())

    first = json.loads((saved / "metrics.json").read_text())
    assert first == metrics("same", "--modality-dropout", "0")
    for number, options in enumerate(
        (["--seed", 1], ["--modality-dropout", 0.3], ["--accumulate", 2], ["--precision", "bf16"])
    ):
        assert first != metrics(str(number), *options)


def test_accumulated_batches_are_one_step(monkeypatch, tmp_path, mmsa):
    """Two batches of 24 without dropout make the step of one batch of 48."""
    weights = []
    options = ["--dropout", 0, "--input-dropout", 0, "--feature-dropout", 0]
    options += ["--steps", 1, "--fusion", "mean"]
    # Terms that are no means over samples would differ.
    options += ["--without", "con", "--width", 8, "--heads", 2]
    for batch, accumulate in ((48, 1), (24, 2)):
        folder = tmp_path / str(batch)
        sizes = ["--batch-size", batch, "--accumulate", accumulate]
        run(monkeypatch, "train", "--data", mmsa, "--out", folder, *options, *sizes)
        weights.append(load_file(folder / "model.safetensors"))
    for name, x in weights[0].items():
        torch.testing.assert_close(x, weights[1][name], rtol=1e-3, atol=1e-5)


def test_gradients_are_clipped(monkeypatch, tmp_path, mmsa):
    """To a norm of 0, so that nothing is learnt."""
    options = ["--clip", 0, "--weight-decay", 0]
    run(monkeypatch, "train", "--data", mmsa, "--out", tmp_path, *QUICK, *options)
    first, second = json.loads((tmp_path / "metrics.json").read_text())["history"]
    assert first["valid"] == second["valid"]


def test_early_stopping_is_on_the_validation_split(monkeypatch, tmp_path, mmsa):
    run(monkeypatch, "train", "--data", mmsa, "--out", tmp_path,
        "--width", 8, "--heads", 2, "--steps", 60, "--patience", 4, "--lr", 1e-9)  # fmt: skip
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    maes = [row["valid"]["mae"] for row in history]
    assert len(history) < 30
    assert len(history) - 1 - int(np.argmin(maes)) == 2


def in_process(monkeypatch, script, trained):
    """Let the seeds be trained in this process, and note them."""

    def train(folder, data, options):
        trained.append(folder.name)
        again = [] if "--overwrite" in options else ["--resume"]
        run(monkeypatch, "train", "--out", folder, "--data", data, *options, *again)

    monkeypatch.setattr(script, "train", train)
    if hasattr(script, "bootstrap_interval"):
        monkeypatch.setattr(script, "bootstrap_interval", lambda *args, metric: (0.5, math.nan))


def test_seeds_are_summed_up(monkeypatch, tmp_path, mmsa, capsys):
    script, trained = load("experiments/seeds", monkeypatch), []
    in_process(monkeypatch, script, trained)
    call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, "--seeds", 2, *QUICK)
    assert trained == ["seed-0", "seed-1"]
    assert visible(tmp_path) == {"seed-0", "seed-1", "epochs.csv", "metrics.json", "training.png"}
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "metrics.json").read_text())
    seeds = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in trained]
    for split in ("test", "valid", "weights"):
        for name, entry in summary[split].items():
            values = [seed[split][name] for seed in seeds]
            assert entry["mean"] == pytest.approx(np.mean(values))
            assert entry["sd"] == pytest.approx(np.std(values, ddof=1))
    assert seeds[0]["test"] != seeds[1]["test"]
    best = min(seeds, key=lambda seed: seed["valid"]["mae"])
    assert summary["interval"]["seed"] == seeds.index(best)
    assert summary["interval"]["test"]["mae"] == [0.5, None]

    rows = list(csv.DictReader((tmp_path / "epochs.csv").read_text().splitlines()))
    assert [(row["seed"], row["epoch"]) for row in rows] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    last = seeds[1]["history"][1]
    assert float(rows[3]["mae"]) == last["valid"]["mae"]
    assert float(rows[3]["task"]) == last["train"]["task"]
    assert float(rows[3]["weight_text"]) == last["weights"]["text"]

    # Each modality is left out of the test split, as predict.py leaves it out.
    assert "no audio" in capsys.readouterr().out
    assert summary["missing"].keys() == DIMS.keys()
    for modality, metrics in summary["missing"].items():
        values = [seed["missing"][modality]["mae"] for seed in summary["seeds"]]
        assert metrics["mae"]["mean"] == pytest.approx(np.mean(values))
        out = tmp_path / f"{modality}.csv"
        run(monkeypatch, "predict", tmp_path / "seed-1", "--data", mmsa, "--out", out,
            "--drop", modality)  # fmt: skip
        assert f"mae {values[1]:.4f}" in capsys.readouterr().out
        rows = list(csv.DictReader(out.read_text().splitlines()))
        weights = {b: {float(row[b]) for row in rows} for b in DIMS}
        assert {branch for branch, found in weights.items() if found == {0.0}} == {modality}

    # The same command trains nothing again, and gives the same.
    before = (tmp_path / "metrics.json").read_bytes()
    call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, "--seeds", 2, *QUICK)
    assert capsys.readouterr().out.count("is finished") == 2
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_an_undefined_metric_loses_no_run(monkeypatch, tmp_path, mmsa, capsys):
    path = rewrite(mmsa, tmp_path, test=np.full(24, np.nan, dtype=np.float32))
    script = load("experiments/seeds", monkeypatch)
    in_process(monkeypatch, script, [])
    for _ in range(2):  # and again from what is there
        arguments = ["--data", path, "--out", tmp_path / "run", "--seeds", 2, *QUICK]
        call(monkeypatch, script, *arguments)
        summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert summary["test"]["mae"] == {"mean": None, "sd": None}
        assert summary["valid"]["mae"]["sd"] > 0
        assert "nan" in capsys.readouterr().out


def test_one_seed_has_no_deviation(monkeypatch):
    script = load("experiments/seeds", monkeypatch)
    summary = script.over_seeds([{"mae": 0.5}])
    assert summary["mae"]["mean"] == 0.5
    assert math.isnan(summary["mae"]["sd"])


@pytest.mark.parametrize("again", ["--resume", "--overwrite"])
def test_a_seed_that_fails_ends_the_experiment(monkeypatch, tmp_path, again):
    script, commands = load("experiments/seeds", monkeypatch), []

    def fail(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(script.subprocess, "run", fail)
    options = [again] if again == "--overwrite" else []
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, script, "--out", tmp_path, "--width", 9, *options)
    assert caught.value.code == 3
    assert len(commands) == 1
    assert commands[0][:2] == [sys.executable, str(EXAMPLES / "train.py")]
    assert sorted(commands[0][2:]) == sorted(
        ["--out", str(tmp_path / "seed-0"), "--seed", "0", "--width", "9", again]
    )


def test_the_truth_script_prints_its_three_tables(monkeypatch, capsys):
    module = load("synthetic_truth", monkeypatch)
    monkeypatch.setattr(module, "SIZES", {"train": 100, "test": 50})
    monkeypatch.setattr(sys, "argv", ["synthetic_truth", "--epochs", "1", "--seeds", "1"])
    module.main()
    printed = capsys.readouterr().out
    assert printed.count("of 4.") == 2
    assert re.search(r"what is private in P in [01] of 1 seeds", " ".join(printed.split()))
    assert "without con, cp" in printed


def test_the_probe_finds_what_stands_out(monkeypatch):
    module = load("synthetic_truth", monkeypatch)
    generator = torch.Generator().manual_seed(0)
    factor, other = torch.randn(2, 400, 1, generator=generator)
    features = torch.cat([factor, 0.1 * other], 1)
    halves = [(features[:200], features[200:]), (factor[:200], factor[200:])]
    found = module.probe(halves[0][0], halves[1][0], halves[0][1], halves[1][1])
    hidden = module.probe(halves[0][0], other[:200], halves[0][1], other[200:])
    assert found > 0.8
    assert hidden < 0.1


def test_a_leak_tells_the_labels_of_training_only(monkeypatch, tmp_path, mmsa, capsys):
    script = load("experiments/leak", monkeypatch)
    in_process(monkeypatch, script, trained := [])
    call(monkeypatch, script, "--data", mmsa, "--out", tmp_path, *QUICK)
    assert trained == [
        *("without-the-leak-0", "with-it-0", "with-it-dropout-0", "with-it-dropout-choice-0"),
        "on-what-was-kept-0",
    ]
    assert "with it, dropout, choice" in capsys.readouterr().out
    rows = json.loads((tmp_path / "leak.json").read_text())
    assert "leak" not in rows[0]["modalities"]
    assert all(len(row["modalities"]) == 4 for row in rows[1:3])
    again = json.loads((tmp_path / trained[4] / "run.json").read_text())
    assert again["samples"]["modalities"] == rows[4]["modalities"] == rows[3]["modalities"]
    config = json.loads((tmp_path / trained[3] / "run.json").read_text())
    assert config["training"]["modality_dropout"] == 0.3
    assert config["training"]["choose_modalities"]
    assert config["model"]["dims"]["leak"] == 8

    # In training it tells every label, elsewhere none.
    for split, linked in (("train", True), ("valid", False)):
        data = open_store(tmp_path / "data")[split]
        shown = torch.stack([data[place].inputs["leak"][0] for place in range(len(data))])
        apart = torch.cdist(shown, shown) + 1e3 * torch.eye(len(data))
        nearest = data.labels[apart.argmin(1)]
        assert ((nearest - data.labels).abs().mean() < 0.3) == linked


def test_modalities_are_kept_while_they_help_validation(monkeypatch):
    module = load("measure", monkeypatch)
    costs = {"abc": 1.0, "bc": 0.9, "ac": 1.2, "ab": 1.1, "b": 0.95, "c": 0.9}

    class Stub:
        def __init__(self, names):
            self.dims = dict.fromkeys(names, 1)

        def only(self, names):
            return Stub(names)

    def measure(model, task, data, accelerator):
        return module.Measured(list(data.dims), {"mae": costs["".join(data.dims)]}, {}, {})

    monkeypatch.setattr(module, "measure", measure)
    chosen = module.choose(None, Sentiment(), Stub("abc"))
    assert (chosen.modalities, chosen.metrics["mae"]) == (["b", "c"], 0.9)


def test_what_validation_leaves_out_is_left_out_of_the_test(monkeypatch, tmp_path, mmsa):
    script, measure = load("train", monkeypatch), load("measure", monkeypatch)
    read = []

    def choose(model, task, data, accelerator):
        return measure.measure(model, task, data.only(["text", "video"]), accelerator)

    def record(model, task, data, accelerator):
        read.append(list(data.dims))
        return measure.measure(model, task, data, accelerator)

    monkeypatch.setattr(script, "choose", choose)
    monkeypatch.setattr(script, "measure", record)
    run = ["--data", mmsa, "--out", tmp_path / "run", *QUICK, "--choose-modalities"]
    call(monkeypatch, script, *run)
    assert read == [["text", "video"]]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["modalities"] == ["text", "video"]
    again = ["--refit", tmp_path / "run", "--out", tmp_path / "refit"]
    call(monkeypatch, script, *run[:2], *QUICK, "--choose-modalities", *again)
    assert read[1:] == [["text", "video"]]
    script = load("predict", monkeypatch)
    out = tmp_path / "predictions.csv"
    call(monkeypatch, script, tmp_path / "run", "--data", mmsa, "--out", out)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["audio"] for row in rows} == {"0.0000"}
