"""The protocol compares variants: by the right figures, over the right units, and goes on."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="the examples need the extra 'examples'")
pytest.importorskip("sklearn", reason="the baselines need scikit-learn")

from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tdmer.data import MultimodalDataset
from tests.test_examples import EXAMPLES, load, refusal, run, write_mmsa, write_npz

QUICK = ["--width", 8, "--heads", 2, "--layers", 0, "--steps", 2]
DEFAULT = ["--variant", "default"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def mmsa(tmp_path_factory):
    return write_mmsa(tmp_path_factory.mktemp("data") / "small.pkl")


def emotions(npz, out, *more):
    where = ["--data", npz, "--label", "emotion", "--group", "actor", "--out", out]
    return [*where, *QUICK, *more]


def content(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def compared(tmp_path_factory, npz):
    """The folder of three variants on four splits with two seeds."""
    out = tmp_path_factory.mktemp("runs")
    more = [
        "--split",
        "folds:4",
        "--seeds",
        2,
        "--variant",
        "default",
        "--variant",
        "fast: --lr .1",
    ]
    more += ["--variant", "logistic regression: sklearn"]
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "experiments/protocol", *emotions(npz, out, *more))
    return out


def test_every_run_is_one_of_train(compared, npz, monkeypatch, tmp_path):
    folders = sorted(path.parent for path in compared.glob("*/*/*/metrics.json"))
    assert len(folders) == 3 * 4 * 2
    assert compared / "default" / "folds-4-2" / "seed-1" in folders
    where = ["--data", npz, "--label", "emotion", "--group", "actor", "--split", "folds:4/2"]
    more = [*QUICK, "--lr", 0.1, "--seed", 1, "--out", tmp_path]
    run(monkeypatch, "train", *where, *more)
    for name in ("run.json", "metrics.json", "model.safetensors"):
        own = compared / "fast" / "folds-4-2" / "seed-1" / name
        assert own.read_bytes() == (tmp_path / name).read_bytes()


def test_the_summary_is_of_the_validation_split(compared):
    summary = content(compared, "valid.json")
    assert not (compared / "test.json").exists()
    assert summary["read"] == "valid"
    assert summary["figure"] == "accuracy"
    values = {}
    for name, folder in (
        ("default", "default"),
        ("fast", "fast"),
        ("logistic regression", "logistic-regression"),
    ):
        found = [
            [
                content(compared / folder / f"folds-4-{fold}" / f"seed-{seed}", "metrics.json")
                for seed in range(2)
            ]
            for fold in range(4)
        ]
        column = np.array([[run["valid"]["accuracy"] for run in split] for split in found])
        entry = summary["variants"][name]
        assert entry["figures"]["accuracy"]["mean"] == pytest.approx(column.mean())
        assert entry["figures"]["accuracy"]["sd"] == pytest.approx(column.std(ddof=1))
        values[name] = column
        if name == "logistic regression":
            assert entry["figures"]["best_branch"]["mean"] is None
            continue
        branches = [run["branches"]["valid"] for split in found for run in split]
        best = [max(alone["accuracy"] for alone in x["alone"].values()) for x in branches]
        assert entry["figures"]["best_branch"]["mean"] == pytest.approx(np.mean(best))
        mean = [x["mean"]["accuracy"] for x in branches]
        assert entry["figures"]["mean_of_branches"]["mean"] == pytest.approx(np.mean(mean))
    assert summary["unit"] == "split"
    assert summary["units"] == 4
    for name, column in values.items():
        gap = summary["variants"][name]["difference"]
        each = column.mean(1) - values["default"].mean(1)
        assert gap["mean"] == pytest.approx(each.mean())
        assert each.min() <= gap["low"] <= gap["mean"] <= gap["high"] <= each.max()
    assert summary["variants"]["default"]["difference"]["p"] == 1
    # The baselines are better than two steps everywhere, which is 2 of 2^4 signs.
    assert summary["variants"]["logistic regression"]["difference"]["p"] == 0.125
    assert len(summary["runs"]) == 24

    lines = (compared / "valid.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    assert [row["variant"] for row in rows] == list(summary["variants"])
    for row in rows:
        entry = summary["variants"][row["variant"]]
        assert float(row["loss"]) == entry["figures"]["loss"]["mean"]
        assert float(row["accuracy_sd"]) == entry["figures"]["accuracy"]["sd"]
        assert float(row["difference_low"]) == entry["difference"]["low"]


def test_the_same_command_trains_nothing_again(compared, npz, monkeypatch, tmp_path, capsys):
    out = shutil.copytree(compared, tmp_path / "runs")
    (out / "fast" / "folds-4-3" / "seed-0" / "metrics.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/model.safetensors")}
    more = ["--split", "folds:4", "--seeds", 2, *DEFAULT, "--variant", "fast: --lr .1"]
    run(monkeypatch, "experiments/protocol", *emotions(npz, out, *more))
    changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == [out / "fast" / "folds-4-3" / "seed-0" / "model.safetensors"]
    printed = capsys.readouterr().out
    assert "16 of 16" in printed
    # A table of the validation split, and no word of the test split.
    assert "Validation split: mean ± sd of 8 run(s)" in printed
    assert "test:" not in printed
    # A variant of other options under an old name is refused.
    more[-1] = "fast: --lr .2"
    message = refusal(monkeypatch, "experiments/protocol", *emotions(npz, out, *more))
    assert "training.lr was 0.1, is 0.2" in message
    assert str(out / "fast" / "folds-4-0" / "seed-0") in message


def test_the_test_split_is_read_when_told(compared, npz, monkeypatch, tmp_path, capsys):
    out = shutil.copytree(compared, tmp_path / "runs")
    more = ["--split", "folds:4/1", "--seeds", 2, *DEFAULT, "--read", "test"]
    run(monkeypatch, "experiments/protocol", *emotions(npz, out, *more))
    assert "Test split: mean ± sd of 2 run(s)" in capsys.readouterr().out
    summary = content(out, "test.json")
    assert summary["read"] == "test"
    found = [
        content(out / "default" / "folds-4-1" / f"seed-{seed}", "metrics.json") for seed in (0, 1)
    ]
    figures = summary["variants"]["default"]["figures"]
    expected = np.mean([run["test"]["accuracy"] for run in found])
    assert figures["accuracy"]["mean"] == pytest.approx(expected)
    # The best branch is chosen in validation, and its figure is that of the test split.
    best = []
    for entry in found:
        valid = entry["branches"]["valid"]["alone"]
        branch = max(valid, key=lambda name: valid[name]["accuracy"])
        best.append(entry["branches"]["test"]["alone"][branch]["accuracy"])
    assert figures["best_branch"]["mean"] == pytest.approx(np.mean(best))


@pytest.mark.parametrize("refit", [False, True])
def test_the_choice_of_every_split_is_that_of_its_validation(
    compared, npz, monkeypatch, tmp_path, refit
):
    """Of the mean over seeds, and in the order of the splits, whichever variant it is."""
    out = shutil.copytree(compared, tmp_path / "runs")
    best = {0: "fast", 1: "default", 2: "fast", 3: "default"}
    for path in out.glob("*/*/seed-?/metrics.json"):
        variant, split, seed = path.parts[-4:-1]
        found = json.loads(path.read_text())
        ahead = best[int(split[-1])] == variant
        # The other has the best run, and the worst.
        found["valid"]["accuracy"] = 0.6 if ahead else (0.9, 0.1)[int(seed[-1])]
        path.write_text(json.dumps(found))
    read = "refit" if refit else "test"
    more = ["--split", "folds:4", "--seeds", 2, *DEFAULT, "--variant", "fast: --lr .1", "--choose"]
    more += ["--refit"] if refit else ["--read", "test"]
    run(monkeypatch, "experiments/protocol", *emotions(npz, out, *more))
    summary = content(out, f"{read}.json")
    by_run = {
        (row["variant"], row["split"], row["seed"]): row["accuracy"] for row in summary["runs"]
    }
    for fold, name in best.items():
        for seed in range(2):
            split = f"folds:4/{fold}"
            assert by_run["chosen", split, seed] == by_run[name, split, seed]
    gap = summary["variants"]["chosen"]["difference"]["mean"]
    own = [by_run["chosen", f"folds:4/{k}", s] for k in range(4) for s in range(2)]
    first = [by_run["default", f"folds:4/{k}", s] for k in range(4) for s in range(2)]
    assert gap == pytest.approx(np.mean(own) - np.mean(first))
    assert [row["split"] for row in summary["runs"]][-8::2] == [f"folds:4/{k}" for k in range(4)]
    assert '"folds:4/0": "fast", "folds:4/1": "default"' in (out / f"{read}.md").read_text()


def test_the_best_branch_is_that_of_the_validation_split(monkeypatch, tmp_path):
    differences = load("experiments/differences", monkeypatch)

    def alone(a, b):
        return {"alone": {"a": {"accuracy": a}, "b": {"accuracy": b}}, "mean": {"accuracy": 0.4}}

    first = {"valid": {"accuracy": 0.5}, "branches": {"valid": alone(0.8, 0.7)}, "step": 3}
    first |= {"test": {"accuracy": 0.3}}
    first["branches"]["test"] = alone(0.1, 0.9)
    last = {"test": {"accuracy": 0.6}, "branches": {"test": alone(0.2, 0.9)}, "step": 3}
    for refit, expected in ((False, 0.1), (True, 0.2)):
        found = iter([first, last])
        monkeypatch.setattr(differences, "from_json", lambda path, found=found: next(found))
        run = differences.Run("v", "official", 0, tmp_path, [], refit, False)
        figures = differences.figures(run, "test")
        assert figures["best_branch"] == expected
        assert figures["accuracy"] == (0.6 if refit else 0.3)


def test_a_refit_follows_every_run(npz, monkeypatch, tmp_path, capsys):
    more = ["--split", "folds:4/0", "--seeds", 1, *DEFAULT, "--refit"]
    # Of runs of other precision in one process, none minds the one before.
    more += ["--variant", "logistic regression: sklearn", "--variant", "half: --precision bf16"]
    run(monkeypatch, "experiments/protocol", *emotions(npz, tmp_path, *more))
    assert "Test split, trained on train and valid" in capsys.readouterr().out
    summary = content(tmp_path, "refit.json")
    for name in ("default", "logistic regression"):
        folder = tmp_path / name.replace(" ", "-") / "folds-4-0"
        again = content(folder / "seed-0-refit", "metrics.json")
        assert "valid" not in again
        assert content(folder / "seed-0-refit", "run.json")["training"]["refit"] is True
        figures = summary["variants"][name]["figures"]
        assert figures["accuracy"]["mean"] == again["test"]["accuracy"]
        # More samples make another fit.
        assert again["test"]["loss"] != content(folder / "seed-0", "metrics.json")["test"]["loss"]


def test_scores_are_compared_by_their_error(mmsa, monkeypatch, tmp_path, capsys):
    """One split and one seed have no deviation, no interval and no p value."""
    more = ["--seeds", 1, *DEFAULT, "--variant", "Ridge, text: sklearn --modalities text"]
    run(monkeypatch, "experiments/protocol", "--data", mmsa, "--out", tmp_path, *QUICK, *more)
    assert "MAE" in capsys.readouterr().out
    summary = content(tmp_path, "valid.json")
    assert summary["figure"] == "mae"
    assert summary["unit"] == "run"
    default, ridge = summary["variants"].values()
    assert ridge["figures"]["mae"]["mean"] < 0.2  # the text carries the label
    gap = ridge["difference"]
    expected = ridge["figures"]["mae"]["mean"] - default["figures"]["mae"]["mean"]
    assert gap == {"mean": pytest.approx(expected), "low": None, "high": None, "p": None}
    assert default["figures"]["mae"]["sd"] is None
    alone = content(tmp_path / "default" / "official" / "seed-0", "metrics.json")["branches"]
    best = min(entry["mae"] for entry in alone["valid"]["alone"].values())
    assert default["figures"]["best_branch"]["mean"] == best


def test_differences_are_paired(monkeypatch):
    """An effect far below the spread of the splits is seen."""
    module = load("experiments/differences", monkeypatch)
    first = np.arange(8.0)
    found = module.compare(first + 0.1 + 0.01 * np.cos(first), first)
    assert found["mean"] == pytest.approx(0.1, abs=0.01)
    assert 0.08 < found["low"] < found["mean"] < found["high"] < 0.12
    assert found["p"] == 2 / 2**8
    nothing = module.compare(first, first)
    assert nothing == {"mean": 0, "low": 0, "high": 0, "p": 1}
    undefined = module.compare(np.array([np.nan, 1]), np.array([1.0, 2]))
    assert all(math.isnan(value) for value in undefined.values())


@pytest.mark.parametrize(("splits", "unit", "units"), [(3, "run", 6), (4, "split", 4)])
def test_the_unit_is_a_split_where_there_are_four(monkeypatch, splits, unit, units):
    module = load("experiments/differences", monkeypatch)
    monkeypatch.setattr(
        module,
        "figures",
        lambda run, _: {
            "mae": int(run.split) + run.seed + (run.variant == "b"), "corr": 0.0, "acc2_non0": 0.0,
            "best_branch": 0.0, "mean_of_branches": 0.0,
        },
    )  # fmt: skip
    runs = [
        module.Run(variant, str(split), seed, None, [], False, False)
        for variant in "ab"
        for split in range(splits)
        for seed in range(2)
    ]
    found = module.summarize(runs, "valid")
    assert (found["unit"], found["units"]) == (unit, units)
    assert found["variants"]["b"]["difference"]["mean"] == 1
    assert found["variants"]["a"]["figures"]["mae"]["mean"] == (splits - 1) / 2 + 0.5


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([*DEFAULT, *DEFAULT], "names of their own"),
        (["--variant", "a b", "--variant", "a-b: --lr 1"], "names of their own"),
        (["--variant", "forest: sklearn"], "must begin with one of ['logistic regression', 'svm'"),
        (["--variant", "ridge: sklearn"], "must begin with one of ['logistic regression', 'svm'"),
        (["--variant", "negative: --alpha -1"], "alpha"),
        ([*DEFAULT, "--split", "folds:2"], "--split must be official, folds:K/k"),
        ([*DEFAULT, "--choose"], "--choose reads the test split"),
        (["--variant", "chosen", "--choose", "--refit"], "variants other names"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(npz, monkeypatch, tmp_path, more, reason):
    split = [] if "--split" in more else ["--split", "folds:4"]
    arguments = emotions(npz, tmp_path, *split, "--seeds", 1, *more)
    assert reason in refusal(monkeypatch, "experiments/protocol", *arguments)


def test_wrong_options_are_refused_before_any_run(npz, monkeypatch, tmp_path, capsys):
    more = ["--split", "folds:4", *DEFAULT, "--variant", "wrong: --lr many"]
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "experiments/protocol", *emotions(npz, tmp_path / "out", *more))
    assert caught.value.code == 2
    assert "argument --lr: invalid float value: 'many'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_baselines_are_those_of_scikit_learn(npz, monkeypatch, compared):
    """On the same training samples, standardised by them, the means over real steps."""
    with np.load(npz) as found:
        face, voice, emotion, actor = (found[n] for n in ("face", "voice", "emotion", "actor"))
    steps = 2 + np.arange(80) % 2
    x = np.hstack([face, voice.sum(1) / steps[:, None]]).astype(float)
    place = np.unique(actor, return_inverse=True)[1] % 4
    train, valid, test = place > 1, place == 1, place == 0
    scaler = StandardScaler().fit(x[train])
    oracle = LogisticRegression(C=0.02, max_iter=5000)
    oracle.fit(scaler.transform(x[train]), emotion[train])
    written = content(compared / "logistic-regression" / "folds-4-0" / "seed-0", "metrics.json")
    for split, rows in (("valid", valid), ("test", test)):
        scaled = scaler.transform(x[rows])
        assert written[split]["accuracy"] == oracle.score(scaled, emotion[rows])
        given = oracle.predict_proba(scaled)[np.arange(rows.sum()), emotion[rows]]
        assert written[split]["loss"] == pytest.approx(-np.log(given).mean(), rel=1e-5)


def test_a_mean_is_over_the_numbers(monkeypatch):
    """In each feature over the real steps where it is one."""
    pooled = load("experiments/baselines", monkeypatch).pooled
    steps = torch.tensor([[1.0, torch.nan], [3.0, torch.inf], [5.0, 4.0]])
    data = MultimodalDataset({"a": [steps, steps[:2]], "b": [steps[:0], steps[2:]]}, [0.0, 0.0])
    expected = [[3, 4, np.nan, np.nan], [2, np.nan, 5, 4]]
    np.testing.assert_array_equal(pooled(data), expected)


@pytest.mark.parametrize("name", ["logistic regression", "svm", "mlp", "ridge"])
def test_baselines_bear_what_is_missing(npz, mmsa, monkeypatch, tmp_path, name):
    """No number is the mean, and a label that is missing is not learnt."""
    train = load("options", monkeypatch)
    fit = load("experiments/baselines", monkeypatch).fit
    with np.load(npz) as found:
        data = dict(found)
    data["face"][:10, 1] = [np.nan, np.inf] * 5
    data["voice"][5] = 0
    data["emotion"][::9] = -100
    if name in ("ridge", "mlp"):
        data["emotion"] = np.where(data["emotion"] < 0, np.nan, data["emotion"] - 1.0)
    path = tmp_path / "gaps.npz"
    np.savez(path, **data)
    where = ["--data", path, "--label", "emotion", "--group", "actor", "--split", "folds:4/0"]
    for seed in (0, 1):
        out = ["--out", tmp_path / str(seed), "--seed", seed]
        fit(name, train.parse_args("", list(map(str, [*where, *out]))))
    first, second = (content(tmp_path / str(seed), "metrics.json") for seed in (0, 1))
    assert (first != second) == (name == "mlp")
    assert first["test"].get("accuracy", 1) > 0.5
    assert first["test"].get("mae", 0) < 1.5


def test_runs_may_go_on_side_by_side(npz, tmp_path, compared):
    """In processes of their own, to the same."""
    more = ["--split", "folds:4/0", "folds:4/1", "--seeds", 1, "--jobs", 2, *DEFAULT]
    command = [sys.executable, EXAMPLES / "experiments" / "protocol.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = list(map(str, [*command, *emotions(npz, tmp_path, *more)]))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2" in done.stdout
    for fold in range(2):
        place = f"default/folds-4-{fold}/seed-0/metrics.json"
        assert (tmp_path / place).read_bytes() == (compared / place).read_bytes()
