"""The examples run, and keep their promises about what they write."""

import csv
import importlib.util
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tdmer.data import load_mmsa, write_store

pytest.importorskip("matplotlib", reason="the examples need the extra 'examples'")

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = ["--width", "8", "--heads", "2", "--epochs", "2"]
METRICS = {"mae", "corr", "acc7", "acc5", "acc2_non0", "f1_non0", "acc2_has0", "f1_has0"}


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    module = load(name)
    module.main()
    return module


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


@pytest.fixture(scope="module")
def mmsa(tmp_path_factory):
    return write_mmsa(tmp_path_factory.mktemp("data") / "small.pkl")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mmsa):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "saved"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "train", "--data", mmsa, "--out", folder, "--seeds", 2, *QUICK)
    return folder


def test_a_run_writes_what_it_says_and_can_be_loaded(monkeypatch, tmp_path, mmsa, capsys):
    run(monkeypatch, "train", "--data", mmsa, "--out", tmp_path, "--seeds", 2, *QUICK)
    printed = capsys.readouterr().out
    assert "training.png" in printed
    assert "no audio" in printed
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")

    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert not summary["interrupted"]
    for split in ("test", "valid"):
        assert set(summary[split]) == METRICS
        for name, entry in summary[split].items():
            values = [seed[split][name] for seed in summary["seeds"]]
            assert entry["mean"] == pytest.approx(np.mean(values))
            assert entry["sd"] == pytest.approx(np.std(values, ddof=1))
    best = min(summary["seeds"], key=lambda seed: seed["valid"]["mae"])
    low, high = summary["interval"]["test"]["mae"]
    assert summary["interval"]["seed"] == best["seed"]
    assert low <= best["test"]["mae"] <= high

    rows = list(csv.DictReader((tmp_path / "epochs.csv").read_text().splitlines()))
    assert [(row["seed"], row["epoch"]) for row in rows] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    # The chosen epoch is the one that was best in validation.
    for seed in summary["seeds"]:
        maes = [float(row["mae"]) for row in rows if row["seed"] == str(seed["seed"])]
        assert seed["epoch"] == int(np.argmin(maes))
        assert seed["valid"]["mae"] == pytest.approx(min(maes))

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"]["dims"] == {"text": 4, "audio": 3, "vision": 2}
    assert len(config["data"]["sha256"]) == 64

    out = tmp_path / "predictions.csv"
    run(monkeypatch, "predict", tmp_path, "--data", mmsa, "--out", out)
    predictions = list(csv.DictReader(out.read_text().splitlines()))
    errors = [abs(float(row["label"]) - float(row["prediction"])) for row in predictions]
    assert len(predictions) == 24
    assert np.mean(errors) == pytest.approx(best["test"]["mae"], abs=1e-3)
    assert set(predictions[0]) == {
        "id", "label", "prediction", "common", "text", "audio", "vision",
    }  # fmt: skip


def test_what_is_undefined_is_null(monkeypatch, tmp_path, mmsa, capsys):
    splits = pickle.loads(mmsa.read_bytes())
    splits["test"]["regression_labels"] = np.zeros(24, dtype=np.float32)
    path = tmp_path / "zero.pkl"
    path.write_bytes(pickle.dumps(splits))
    run(monkeypatch, "train", "--data", path, "--out", tmp_path, "--seeds", 1, *QUICK)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "metrics.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert summary["test"]["corr"] == {"mean": None, "sd": None}
    assert summary["interval"]["test"]["corr"] == [None, None]
    assert summary["test"]["mae"]["mean"] > 0
    assert "nan" in capsys.readouterr().out


def test_what_is_infinite_is_null_and_all_else_stays():
    content = {"a": [math.inf, 1.5], "b": {"c": (-math.inf, None)}, "d": [3, True, "inf"]}
    written = json.loads(load("train").to_json(content))
    assert written == {"a": [None, 1.5], "b": {"c": [None, None]}, "d": [3, True, "inf"]}


def test_a_modality_may_be_left_out_of_the_test_split(saved, mmsa, monkeypatch, capsys):
    summary = json.loads((saved / "metrics.json").read_text())
    best = min(summary["seeds"], key=lambda seed: seed["valid"]["mae"])
    assert set(summary["missing"]) == {"text", "audio", "vision"}
    for modality, metrics in summary["missing"].items():
        values = [seed["missing"][modality]["mae"] for seed in summary["seeds"]]
        assert metrics["mae"]["mean"] == pytest.approx(np.mean(values))
        assert metrics["mae"]["mean"] != summary["test"]["mae"]["mean"]
        out = saved.with_name(f"{modality}.csv")
        run(monkeypatch, "predict", saved, "--data", mmsa, "--out", out, "--drop", modality)
        assert f"mae {best['missing'][modality]['mae']:.4f}" in capsys.readouterr().out
        rows = list(csv.DictReader(out.read_text().splitlines()))
        weights = {b: {float(row[b]) for row in rows} for b in ("text", "audio", "vision")}
        assert {branch for branch, values in weights.items() if values == {0.0}} == {modality}
        assert all(np.isfinite(float(row["prediction"])) for row in rows)


def test_a_store_is_data_like_its_source(saved, mmsa, tmp_path, monkeypatch, capsys):
    splits = load_mmsa(mmsa)
    write_store(tmp_path / "store", splits)
    out = ["--out", tmp_path / "run"]
    run(monkeypatch, "train", "--data", tmp_path / "store", *out, "--seeds", 2, *QUICK)
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (saved / "metrics.json").read_bytes()
    files = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["sha256"]
    assert set(files) == {path.name for path in (tmp_path / "store").iterdir()}
    for source in (mmsa, tmp_path / "store"):
        to = tmp_path / f"{source.name}.csv"
        run(monkeypatch, "predict", saved, "--data", source, "--split", "valid", "--out", to)
    assert (tmp_path / "small.pkl.csv").read_text() == (tmp_path / "store.csv").read_text()

    write_store(tmp_path / "two", {split: splits[split] for split in ("train", "test")})
    message = refusal(monkeypatch, "train", "--data", tmp_path / "two", *out)
    assert "must have splits train, valid and test, got ['train', 'test']" in message
    (tmp_path / "empty").mkdir()
    for script, first in (("train", []), ("predict", [saved])):
        message = refusal(monkeypatch, script, *first, "--data", tmp_path / "empty", *out)
        assert "store.json" in message


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


def edit_config(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_weights(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


MODEL = {"dims": {"text": 4, "audio": 3, "vision": 2}, "num_classes": 7, "width": 8, "heads": 2}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, "No such file"),
        (lambda folder: (folder / "config.json").unlink(), "No such file"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "must be one that train.py wrote",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "must be one that train.py"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "must be one that train.py"),
        (lambda folder: (folder / "config.json").write_text("[" * 10**5), "must be one that train"),
        (edit_config(model=MODEL | {"width": 2**62}), "must be one that train.py wrote"),
        (edit_config(model=MODEL | {"dims": {"text": 2**70, "audio": 3}}), "must be one that"),
        (edit_config(model=MODEL | {"dims": ["text", "audio"]}), "must be one that train.py wrote"),
        (edit_config(model=3), "must be one that train.py wrote"),
        (edit_config(model=MODEL | {"code": "os.system"}), "must be one that train.py wrote"),
        (edit_config(model=MODEL | {"width": 9}), "heads"),
        (edit_config(task={"values": [3, 2, 1]}), "increas"),
        # Never made: the shapes are compared first.
        (edit_config(model=MODEL | {"dims": {"text": 10**12, "audio": 3}}), "must fit config.json"),
        (edit_config(model=MODEL | {"width": 16}), "must fit config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "No such file"),
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
        (
            lambda folder: torch.save({"weight": torch.ones(2)}, folder / "model.safetensors"),
            "must be a whole",
        ),
        (edit_weights(lambda tensors: tensors.popitem()), "got None"),
        (edit_weights(lambda tensors: tensors.update(more=torch.ones(2))), "more of None"),
        (
            edit_weights(lambda tensors: next(iter(tensors.values())).fill_(torch.nan)),
            "must hold finite weights",
        ),
    ],
)
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
    for drop in (["hearing"], ["text", "audio", "vision"]):
        message = refusal(monkeypatch, "predict", saved, *data, *out, "--drop", *drop)
        assert "--drop must be some, not all, of ['text', 'audio', 'vision']" in message
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
        (["--out", __file__], "exists"),
        (["--lr", "1e30"], "is nan in epoch 0; a smaller --lr"),
    ],
)
def test_train_names_what_is_wrong(monkeypatch, tmp_path, mmsa, options, reason):
    arguments = ["--data", mmsa, "--out", tmp_path / "run", *QUICK, *options]
    assert reason in refusal(monkeypatch, "train", *arguments)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--seeds 0", "--seeds: must be at least 1, got 0"),
        ("--epochs 0", "--epochs: must be at least 1, got 0"),
        ("--epochs many", "--epochs: invalid count value: 'many'"),
        ("--patience 0", "--patience: must be at least 1, got 0"),
        ("--batch-size -1", "--batch-size: must be at least 1, got -1"),
        ("--threads 0", "--threads: must be at least 1, got 0"),
        ("--lr nan", "--lr: must be finite and at least 0, got nan"),
        ("--weight-decay -1", "--weight-decay: must be finite and at least 0, got -1"),
        ("--modality-dropout 1", "--modality-dropout: must be in [0, 1), got 1"),
        ("--clip inf", "--clip: must be finite and at least 0, got inf"),
        ("--device quantum", "--device: invalid choice: 'quantum'"),
        ("--resume --overwrite", "--overwrite: not allowed with argument --resume"),
    ],
)
def test_options_out_of_range_are_refused(monkeypatch, tmp_path, options, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "train", "--out", tmp_path / "run", *options.split())
    assert caught.value.code == 2
    assert f"argument {reason}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_repeated_and_an_ablation_differs(monkeypatch, tmp_path, mmsa):
    def metrics(folder, *options):
        arguments = ["--data", mmsa, "--out", tmp_path / folder, "--seeds", 1, *QUICK, *options]
        run(monkeypatch, "train", *arguments)
        return json.loads((tmp_path / folder / "metrics.json").read_text())["seeds"]

    first = metrics("first", "--modality-dropout", "0")
    assert first == metrics("second")
    assert first != metrics("third", "--without", "con", "dp", "--layers", "0")
    assert first != metrics("fourth", "--modality-dropout", "0.3")


def test_early_stopping_is_on_the_validation_split(monkeypatch, tmp_path, mmsa):
    run(monkeypatch, "train", "--data", mmsa, "--out", tmp_path, "--seeds", 1,
        "--width", 8, "--heads", 2, "--epochs", 30, "--patience", 2, "--lr", 1e-9)  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "epochs.csv").read_text().splitlines()))
    maes = [float(row["mae"]) for row in rows]
    assert len(rows) < 30
    assert len(rows) - 1 - int(np.argmin(maes)) == 2


@pytest.fixture
def interruptible():
    """Let child processes be interrupted, also where the tests are a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_what_there_is(tmp_path):
    command = [sys.executable, "-u", str(EXAMPLES / "train.py"), "--out", str(tmp_path)]
    options = ["--width", "8", "--heads", "2", "--epochs", "10000", "--patience", "10000"]
    environment = os.environ | {"COLUMNS": "200"}
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if "epoch  1" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "Stopped" in rest
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["interrupted"]
    assert len(summary["seeds"]) == 1
    assert summary["test"]["mae"]["sd"] is None
    assert (tmp_path / "model.safetensors").exists()


def test_the_truth_script_prints_its_three_tables(monkeypatch, capsys):
    module = load("synthetic_truth")
    monkeypatch.setattr(module, "SIZES", {"train": 100, "test": 50})
    monkeypatch.setattr(sys, "argv", ["synthetic_truth", "--epochs", "1", "--seeds", "1"])
    module.main()
    printed = capsys.readouterr().out
    assert printed.count("of 4.") == 2
    assert "without con, cp" in printed


def test_the_probe_finds_what_stands_out():
    module = load("synthetic_truth")
    generator = torch.Generator().manual_seed(0)
    factor, other = torch.randn(2, 400, 1, generator=generator)
    features = torch.cat([factor, 0.1 * other], 1)
    halves = [(features[:200], features[200:]), (factor[:200], factor[200:])]
    found = module.probe(halves[0][0], halves[1][0], halves[0][1], halves[1][1])
    hidden = module.probe(halves[0][0], other[:200], halves[0][1], other[200:])
    assert found > 0.8
    assert hidden < 0.1
