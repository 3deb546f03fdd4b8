"""The examples run, and keep their promises about what they write."""

import csv
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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


@pytest.fixture(scope="module")
def mmsa(tmp_path_factory):
    """A small file in MMSA's layout, whose text carries the label."""
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
    path = tmp_path_factory.mktemp("data") / "small.pkl"
    path.write_bytes(pickle.dumps(splits))
    return path


def test_a_run_writes_what_it_says_and_can_be_loaded(monkeypatch, tmp_path, mmsa, capsys):
    run(monkeypatch, "train", "--data", mmsa, "--out", tmp_path, "--seeds", 2, *QUICK)
    assert "training.png" in capsys.readouterr().out
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


def test_a_run_can_be_repeated_and_an_ablation_differs(monkeypatch, tmp_path, mmsa):
    def metrics(folder, *options):
        arguments = ["--data", mmsa, "--out", tmp_path / folder, "--seeds", 1, *QUICK, *options]
        run(monkeypatch, "train", *arguments)
        return json.loads((tmp_path / folder / "metrics.json").read_text())["seeds"]

    first = metrics("first")
    assert first == metrics("second")
    assert first != metrics("third", "--without", "con", "dp", "--layers", "0")


def test_early_stopping_is_on_the_validation_split(monkeypatch, tmp_path, mmsa):
    run(monkeypatch, "train", "--data", mmsa, "--out", tmp_path, "--seeds", 1,
        "--width", 8, "--heads", 2, "--epochs", 30, "--patience", 2, "--lr", 1e-9)  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "epochs.csv").read_text().splitlines()))
    maes = [float(row["mae"]) for row in rows]
    assert len(rows) < 30
    assert len(rows) - 1 - int(np.argmin(maes)) == 2


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
