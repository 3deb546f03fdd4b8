"""The experiments beyond the protocol: paired differences, and tables that say what they are of."""

import json
import math
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="the examples need the extra 'examples'")
pytest.importorskip("matplotlib", reason="the examples need the extra 'examples'")

from filelock import FileLock

from tdmer.data import open_store
from tests.test_examples import EXAMPLES, call, load, refusal, write_mmsa, write_npz

QUICK = ["--width", 8, "--heads", 2, "--layers", 0, "--steps", 2]


@pytest.fixture(scope="module")
def mmsa(tmp_path_factory):
    return write_mmsa(tmp_path_factory.mktemp("data") / "small.pkl")


@pytest.fixture(scope="module")
def ablated(tmp_path_factory, mmsa):
    """The folder of the whole and two rows, with two seeds."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        call(patch, load("experiments/ablation", patch), *ablation(mmsa, out))
    return out


def ablation(mmsa, out, *more):
    rows = ["--rows", "(-) L_en", "(-) TCF", "--seeds", 2]
    return ["--data", mmsa, "--out", out, *QUICK, *rows, *more]


def content(folder, name="metrics.json"):
    return json.loads((folder / name).read_text())


def seed_folders(out, row):
    return [out / row / "official" / f"seed-{seed}" for seed in range(2)]


def rows_of(path):
    """Return rows and the lines that say where they come from."""
    lines = path.read_text().splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    names, *rows = (line.split(",") for line in lines if not line.startswith("# "))
    return [dict(zip(names, row, strict=True)) for row in rows], about


def test_the_paper_s_table_row_for_row(ablated):
    modules, _ = rows_of(ablated / "modules.csv")
    assert [row["row"] for row in modules] == ["(-) L_en", "(-) TCF", "TDMER"]
    for row, folder in zip(modules, ("-L_en", "-TCF", "TDMER"), strict=True):
        found = [content(path)["test"] for path in seed_folders(ablated, folder.strip("-"))]
        for name in ("mae", "acc2_non0", "f1_non0", "acc7"):
            values = [entry[name] for entry in found]
            assert float(row[name]) == pytest.approx(np.mean(values))
            assert float(row[f"{name}_sd"]) == pytest.approx(np.std(values, ddof=1))
    whole = float(modules[-1]["mae"])
    for row in modules[:2]:
        assert float(row["difference_mean"]) == pytest.approx(float(row["mae"]) - whole)
        low, high = float(row["difference_low"]), float(row["difference_high"])
        assert low <= float(row["difference_mean"]) <= high
        assert 0 < float(row["difference_p"]) <= float(row["difference_p_holm"]) <= 1
    assert modules[-1]["difference_mean"] == ""

    lines = (ablated / "modules.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert cells[0][:8] == [
        "L_en", "common CML", "private CML", "TCF", "Acc2 (%)", "F1 (%)", "Acc7 (%)", "MAE",
    ]  # fmt: skip
    assert ["".join(row[:4]) for row in cells[2:]] == ["✗✓✓✓", "✓✓✓✗", "✓✓✓✓"]
    assert cells[-1][7].startswith(f"{whole:.3f} ± ")


def test_a_table_says_what_it_depends_on(ablated, mmsa):
    config = content(seed_folders(ablated, "TDMER")[0], "run.json")
    for path in sorted([*ablated.glob("*.csv"), *ablated.glob("*.md")]):
        text = path.read_text()
        assert config["data"][mmsa.name] in text, path
        for word in ('"width": 8', '"lr":', '"python":', '"torch":', "[0, 1]", "--fusion mean"):
            assert word in text, (path, word)
        for name in ("command", "figures of", "data, SHA-256", "splits", "seeds", "versions"):
            assert f"{name}: " in text, (path, name)
        assert "the test split" in text
    # Of the rows that were asked for.
    assert sorted(path.stem for path in ablated.glob("*.csv")) == ["modules", "orderings"]


def test_an_ablation_that_is_cut_short_goes_on(ablated, mmsa, monkeypatch, tmp_path, capsys):
    out = shutil.copytree(ablated, tmp_path / "runs")
    lost = seed_folders(out, "TCF")[1]
    shutil.rmtree(lost)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/model.safetensors")}
    call(monkeypatch, load("experiments/ablation", monkeypatch), *ablation(mmsa, out))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "modules.csv").read_text().split("row,")[1] == (
        (ablated / "modules.csv").read_text().split("row,")[1]
    )
    # Every epoch was timed, beside the figures that are the same in every repetition.
    clock = [json.loads(line) for line in (lost / "clock.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in clock] == [0]
    assert clock[0]["seconds"] > 0
    assert clock[0]["peak"] > 2**20
    printed = capsys.readouterr().out
    assert "Of 2 parts" in printed
    assert "test:" not in printed


def test_rows_that_are_none_are_named(mmsa, monkeypatch, tmp_path):
    arguments = ["--data", mmsa, "--out", tmp_path, "--rows", "(-) L_x"]
    assert "--rows must be of ['TDMER'," in refusal(monkeypatch, "experiments/ablation", *arguments)


@pytest.mark.parametrize(("task", "sign"), [("Sentiment", 1), ("Classification", -1)])
def test_orderings_are_those_of_the_paper(monkeypatch, tmp_path, task, sign, capsys):
    """The paper's own gaps are all as in the paper, and in its order; turned, none is."""
    module = load("experiments/ablation", monkeypatch)
    mosi = module.PAPER["CMU-MOSI"]
    about = {"configuration of 'TDMER'": {"task": {"name": task}}}
    costs = {row: values[-1] - mosi["TDMER"][-1] for row, values in mosi.items() if row != "TDMER"}
    for turned, verdict in ((sign, "as in the paper"), (-sign, "opposite")):
        gaps = {row: {"mean": turned * cost, "p_holm": 0.04} for row, cost in costs.items()}
        gaps["(-) TCF"]["p_holm"] = 0.06
        module.order(tmp_path / "orderings", gaps, about)
        printed = capsys.readouterr().out
        lines = (tmp_path / "orderings.csv").read_text().splitlines()
        assert [line.split(",")[-1] for line in lines if line.startswith("(")] == (
            [verdict] * 8 + ["not told from noise"]
        )
        same = 35 if verdict == "as in the paper" else 0
        assert f"Of 35 pairs of parts, {same} are in the order of CMU-MOSI." in printed


def test_the_paper_s_rows_are_all_there(monkeypatch):
    module = load("experiments/ablation", monkeypatch)
    for printed in module.PAPER.values():
        assert printed.keys() == (module.DECOUPLING | module.MODULES).keys()
    assert module.CROSSES.keys() == module.MODULES.keys()


def test_paired_differences_hold_seeds_and_samples(monkeypatch):
    paired = load("experiments/differences", monkeypatch).paired
    rng = np.random.default_rng(0)
    each = rng.normal(0.1, 1, size=200)
    first = rng.normal(size=(3, 200))
    # The same samples for every seed: the interval of a mean.
    found = paired(first + each, first, range(200))
    half = 1.96 * each.std() / np.sqrt(200)
    assert found["mean"] == pytest.approx(each.mean())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.06)
    # Samples that are copies of each other count once.
    copies = paired((first + each).repeat(4, 1), first.repeat(4, 1), np.arange(200).repeat(4))
    assert copies["high"] - copies["low"] == pytest.approx(2 * half, rel=0.06)
    # Of seeds that differ, those too.
    of_seeds = np.array([[-1.0], [0.0], [1.0]])
    spread = paired(first + of_seeds, first, range(200))
    assert spread["mean"] == pytest.approx(0)
    assert spread["high"] - spread["low"] == pytest.approx(4 * np.sqrt(2 / 9), rel=0.3)
    assert spread["p"] > 0.5
    assert paired(first + 1, first, range(200))["p"] == pytest.approx(2 / 2001)
    assert paired(first, first, range(200)) == {"mean": 0, "low": 0, "high": 0, "p": 1}


def test_p_values_are_corrected_by_holm(monkeypatch):
    holm = load("experiments/differences", monkeypatch).holm
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.8, "b": 0.9}) == {"a": 1, "b": 1}


def test_answers_are_of_every_labelled_sample(ablated, mmsa, monkeypatch):
    ablate = load("experiments/ablation", monkeypatch)
    args = ["--data", str(mmsa), *map(str, QUICK)]
    folder = seed_folders(ablated, "TDMER")[1]
    run = load("experiments/runs", monkeypatch).Run("x", "official", 1, folder, args, False, False)
    for read in ("valid", "test"):
        found = ablate.answers([run], read)
        assert found.values.mean() == pytest.approx(content(folder)[read]["mae"])
        assert len(found.groups) == found.values.shape[1] == 24


def test_the_world_is_the_same_for_the_same_seed(monkeypatch, tmp_path):
    world = load("experiments/world", monkeypatch)
    monkeypatch.setattr(world, "SIZES", {"train": 30, "valid": 20, "test": 20})
    folder = world.write_world(tmp_path / "world")
    again, other = world.make_world(), world.make_world(1)
    splits = open_store(folder)
    assert {name: len(data) for name, data in splits.items()} == world.SIZES
    for m in world.DIMS:
        assert torch.equal(splits["test"][5].inputs[m], again["test"][5].inputs[m])
        assert not torch.equal(splits["test"][5].inputs[m][:3], other["test"][5].inputs[m][:3])
    assert splits["train"].labels.abs().max() <= 3
    # One modality of a sample is drowned.
    sizes = torch.tensor([[row.inputs[m].std() for m in world.DIMS] for row in again["train"]])
    assert (sizes.amax(1) > 2 * sizes.median(1).values).float().mean() > 0.8


def test_missing_goes_from_all_to_none(ablated, mmsa, monkeypatch, tmp_path, capsys):
    folders = seed_folders(ablated, "TDMER")
    train = load("train", monkeypatch)
    others = {"early_fusion": [], "unimodal": ["--modalities", "text"]}
    for system, own in others.items():
        where = ["--data", mmsa, "--out", tmp_path / system, "--system", system]
        call(monkeypatch, train, *where, *own, "--steps", 2)

    missing = load("experiments/missing", monkeypatch)
    arguments = [*folders, *(tmp_path / system for system in others), "--data", mmsa]
    call(monkeypatch, missing, *arguments, "--out", tmp_path, "--shares", 2, "--draws", 3)
    rows, about = rows_of(tmp_path / "missing.csv")
    # What has one modality has nothing to go on with.
    assert [row["system"] for row in rows] == 9 * ["TDMER"] + 9 * ["early_fusion"]
    by_share = {
        (row["system"], row["modality"], float(row["share"])): float(row["mae"]) for row in rows
    }
    whole = [content(folder)["test"]["mae"] for folder in folders]
    alone = content(tmp_path / "early_fusion")["test"]["mae"]
    for m in ("text", "audio", "video"):
        assert by_share["TDMER", m, 0] == pytest.approx(np.mean(whole), rel=1e-5)
        assert by_share["early_fusion", m, 0] == pytest.approx(alone, rel=1e-5)
    assert float(rows[0]["mae_sd"]) == pytest.approx(np.std(whole, ddof=1), rel=1e-3)
    assert math.isnan(float(rows[9]["mae_sd"]))

    seeds = load("experiments/seeds", monkeypatch)
    figures = []
    for folder in folders:
        model, task, samples = seeds.load_run(folder)
        data = seeds.load_splits(mmsa, **samples)["test"]
        figures.append({m: x["mae"] for m, x in seeds.without_each(model, task, data).items()})
    for m in ("text", "audio", "video"):
        without = np.mean([figure[m] for figure in figures])
        assert by_share["TDMER", m, 1] == pytest.approx(without, rel=1e-5)
        ends = sorted(by_share["TDMER", m, share] for share in (0, 1))
        assert ends[0] - 0.02 <= by_share["TDMER", m, 0.5] <= ends[1] + 0.02
    assert (tmp_path / "missing.png").read_bytes().startswith(b"\x89PNG")
    assert content(folders[0], "run.json")["data"][mmsa.name] in about["data, SHA-256"]
    assert about["seeds"] == "[0, 1]"
    assert "100% lack text" in capsys.readouterr().out


def test_missing_asks_for_several_modalities(mmsa, monkeypatch, tmp_path):
    where = ["--data", mmsa, "--out", tmp_path / "run", "--modalities", "text"]
    call(monkeypatch, load("train", monkeypatch), *where, "--steps", 2)
    with pytest.raises(SystemExit, match="two or more"):
        call(
            monkeypatch,
            load("experiments/missing", monkeypatch),
            *[tmp_path / "run", "--data", mmsa, "--out", tmp_path],
        )


@pytest.mark.parametrize("named", [[], ["voice"]])
def test_speakers_are_normalised_in_parts(monkeypatch, tmp_path, capsys, named):
    npz = write_npz(tmp_path / "small.npz")
    where = ["--data", npz, "--label", "emotion", "--group", "actor", "--split", "folds:4/0"]
    train, script = load("train", monkeypatch), load("experiments/speakers", monkeypatch)
    folder, raw = tmp_path / "run", tmp_path / "raw"
    call(monkeypatch, train, *where, *QUICK, "--normalize-groups", *named, "--out", folder)
    call(monkeypatch, train, *where, *QUICK, "--out", raw)
    own = ["--data", npz, "--out", tmp_path, "--clips", 2, "--draws", 2]
    collect, seen = script.collect, []

    def note(model, given):
        seen.append(given)
        return collect(model, given)

    monkeypatch.setattr(script, "collect", note)
    call(monkeypatch, script, folder, *own)
    (parts, whole), about = rows_of(tmp_path / "speakers.csv")
    assert (parts["clips"], whole["clips"]) == ("2", "all")
    assert float(whole["accuracy"]) == pytest.approx(content(folder)["test"]["accuracy"])
    assert content(folder, "run.json")["data"][npz.name] in about["data, SHA-256"]
    assert "1 run(s)" in capsys.readouterr().out

    # Each actor has five clips: a part of two and one of three, of which no clip is lost.
    data = script.load_splits(npz, label="emotion", group="actor", split="folds:4/0")["test"]
    for given in seen:
        as_it_is = {
            m: torch.cat([x.inputs[m] for x in given]).equal(torch.cat([x.inputs[m] for x in data]))
            for m in ("face", "voice")
        }
        assert as_it_is == {"face": named == ["voice"], "voice": False}
    found = script.in_parts(data, ["face"], 2, np.random.default_rng(0))
    assert found.ids == data.ids
    assert found.labels.equal(data.labels)
    faces = [sample.inputs["face"] for sample in found]
    for actor in set(data.groups):
        own = [x for x, group in zip(faces, data.groups, strict=True) if group == actor]
        # Of two clips, each feature of one is 1 and of the other -1.
        pairs = [x.abs().allclose(torch.ones(3)) for x in own]
        assert sum(pairs) == 2
        torch.testing.assert_close(torch.cat(own).sum(0), torch.zeros(3), atol=1e-5, rtol=0)
    message = refusal(monkeypatch, "experiments/speakers", raw, "--data", npz)
    assert "must be a run with --normalize-groups" in message


def test_other_clips_of_a_video_help_where_it_has_one_mood(monkeypatch, tmp_path, capsys):
    random = np.random.default_rng(0)
    video = np.repeat(np.arange(80), 5)
    mood = (video % 2).astype(np.int64)
    text = mood[:, None] - 0.5 + random.normal(size=(400, 4))
    np.savez(tmp_path / "x.npz", text=text.astype(np.float32), label=mood, video=video)
    npz, folder = tmp_path / "x.npz", tmp_path / "run"
    where = ["--data", npz, "--group", "video", "--split", "random:0"]
    options = ["--steps", 60, "--warmup", 5, "--lr", 0.01, "--average", 0.5]
    options += ["--kernel-size", 1, "--dropout", 0, "--feature-dropout", 0]
    folders = [tmp_path / f"seed-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        own = ["--out", folder, "--seed", seed]
        call(monkeypatch, load("train", monkeypatch), *where, *QUICK, *options, *own)
    own = ["--data", npz, "--out", tmp_path, "--weights", 0.5, 3]
    call(monkeypatch, load("experiments/context", monkeypatch), *folders, *own)
    runs = [content(folder) for folder in folders]
    alone = np.mean([run["test"]["accuracy"] for run in runs])
    in_valid = np.mean([run["history"][run["epoch"]]["valid"]["accuracy"] for run in runs])
    rows, about = rows_of(tmp_path / "context.csv")
    assert [row["weight"] for row in rows] == ["0.0", "0.5", "3.0"]
    assert about["figures of"] == "the validation split"
    by_weight = {float(row["weight"]): float(row["accuracy"]) for row in rows}
    assert by_weight[0.0] == pytest.approx(in_valid)
    lines = (tmp_path / "context.md").read_text().splitlines()
    cells = [[cell.split(" ± ")[0] for cell in line.split("|")[1:4]] for line in lines[4:6]]
    first, second = ([float(cell) for cell in row] for row in cells)
    assert first == pytest.approx([0, in_valid, alone], abs=6e-4)
    best = second[0]
    assert by_weight[best] == max(by_weight.values()) > by_weight[0.0]
    assert second[2] > alone + 0.05

    # What predict.py says with this weight is what was measured.
    capsys.readouterr()
    script, said = load("predict", monkeypatch), []
    out = ["--data", npz, "--context", best, "--out", tmp_path / "predictions.csv"]
    for folder in folders:
        call(monkeypatch, script, folder, *out)
        said += re.findall(r"accuracy ([0-9.]+)", capsys.readouterr().out)
    assert np.mean([float(accuracy) for accuracy in said]) == pytest.approx(second[2], abs=6e-4)
    message = refusal(
        monkeypatch, "experiments/context", ungrouped(monkeypatch, npz), "--data", npz
    )
    assert "must have groups of several clips" in message


def ungrouped(monkeypatch, npz):
    """Return the run on samples that are a group each."""
    folder = npz.parent / "alone"
    where = ["--data", npz, "--modalities", "text", "--split", "random:0", "--out", folder]
    call(monkeypatch, load("train", monkeypatch), *where, *QUICK)
    return folder


@pytest.mark.parametrize(
    ("modalities", "rows"),
    [
        (["face"], ["no decoupling loss", "TDMER"]),  # single steps
        (["face", "voice"], ["no decoupling loss", "moments over steps", "TDMER"]),
    ],
)
def test_rows_that_need_steps_are_left_out_of_single_steps(
    modalities, rows, monkeypatch, tmp_path, capsys
):
    npz = write_npz(tmp_path / "small.npz")
    where = ["--data", npz, "--label", "emotion", "--group", "actor", "--split", "folds:4/0"]
    own = ["--modalities", *modalities, "--seeds", 1]
    own += ["--rows", "moments over steps", "no decoupling loss"]
    script = load("experiments/ablation", monkeypatch)
    call(monkeypatch, script, *where, *QUICK, *own, "--out", tmp_path / "out")
    found, _ = rows_of(tmp_path / "out" / "choices.csv")
    assert [row["row"] for row in found] == rows
    assert ("left out" in capsys.readouterr().out) == (len(rows) == 2)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is for POSIX")
def test_runs_end_with_the_process_that_started_them(mmsa, tmp_path):
    script = EXAMPLES / "experiments" / "ablation.py"
    own = ["--jobs", 2, "--steps", 100_000, "--patience", 100_000]
    command = [sys.executable, script, *ablation(mmsa, tmp_path, *own)]
    with subprocess.Popen([str(word) for word in command]) as parent:
        until(lambda: all((f / "checkpoint.pt").exists() for f in seed_folders(tmp_path, "TDMER")))
        parent.kill()
    for folder in seed_folders(tmp_path, "TDMER"):
        # As long as a run goes on, its folder is in use.
        FileLock(folder / ".lock").acquire(timeout=20)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(("figure", "best"), [("mae", "one"), ("accuracy", "two")])
def test_what_is_best_in_validation_is_chosen(monkeypatch, figure, best):
    module = load("experiments/comparison", monkeypatch)
    run = load("experiments/runs", monkeypatch).Run
    values = {"a, one": [0.1, 0.5], "a, two": [0.4, 0.3], "b, one": [9.0, 9.0]}
    runs = [
        run(name, str(split), 0, None, [], False, False) for name in values for split in range(2)
    ]
    monkeypatch.setattr(
        module, "figures", lambda run, read: {figure: values[run.variant][int(run.split)]}
    )
    assert module.choose("a", ("one", "two"), runs) == f"a, {best}"


def test_systems_are_compared_on_the_same_seeds(monkeypatch, tmp_path, capsys):
    npz = write_npz(tmp_path / "small.npz")
    module = load("experiments/comparison", monkeypatch)
    execute = load("experiments/runs", monkeypatch).execute
    done = []

    def in_process(runs, jobs, fresh=False):
        done.append((fresh, [execute(run) for run in runs]))

    monkeypatch.setattr(module, "execute_all", in_process)
    where = ["--data", npz, "--label", "emotion", "--group", "actor", "--split", "folds:4/0"]
    more = ["--steps", 2, "--width", 8, "--systems", "unimodal", "early_fusion", "--trials", 2]
    call(monkeypatch, module, *where, *more, "--seeds", 2, "--out", tmp_path / "out")
    (fresh, measured), (_, tried), (_, trained) = done
    # A process of its own, or its memory would be that of all before.
    assert fresh
    assert measured == tried
    # As many trials for each, of one seed, and the best in validation with all seeds.
    assert [run.variant for run in tried] == [
        f"{name}, {point}"
        for name in ("TDMER", "face alone", "voice alone", "early_fusion")
        for point in module.GRID[:2]
    ]
    assert len(trained) == 4 * 2
    for name in ("TDMER", "early_fusion"):
        own = [run for run in tried if run.variant.startswith(name)]
        valid = [content(run.folder)["valid"]["accuracy"] for run in own]
        assert own[int(np.argmax(valid))].folder in [run.folder for run in trained]

    rows, about = rows_of(tmp_path / "out" / "comparison.csv")
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    by_name = {row["system"]: row for row in rows}
    assert by_name.keys() == {"TDMER", "face alone", "voice alone", "early_fusion"}
    for name, row in by_name.items():
        own = [run for run in trained if run.variant.startswith(name)]
        found = [content(run.folder)["test"]["accuracy"] for run in own]
        assert float(row["accuracy"]) == pytest.approx(np.mean(found))
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        gap = float(row["accuracy"]) - float(by_name["TDMER"]["accuracy"])
        if name != "TDMER":
            assert float(row["difference_mean"]) == pytest.approx(gap)
        assert int(row["parameters"]) > 0
        assert float(row["seconds_per_epoch"]) > 0
        assert float(row["peak_megabytes"]) > 50
    # Half of the systems reach what half of them reach.
    assert sum(row["runs_that_reach_it"] != "0" for row in rows) >= 2
    assert "small.npz" in about["data, SHA-256"]
    chosen = (tmp_path / "out" / "chosen.txt").read_text().splitlines()
    assert sorted(chosen) == sorted(str(run.folder) for run in trained)
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "TDMER" in capsys.readouterr().out


def test_a_search_that_is_killed_goes_on_to_the_same(mmsa, monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna", reason="the search needs the extra 'examples'")
    tune = load("experiments/tune", monkeypatch)

    def arguments(out):
        own = ["--trials", 2, "--only", "lr", "dropout", "--seeds", 2]
        return ["--data", mmsa, "--out", out, *QUICK[:-1], 4, *own]

    call(monkeypatch, tune, *arguments(tmp_path / "whole"))
    train, calls = tune.train, []

    def killed(args, watch):
        calls.append(args.out)

        def watching(history):
            watch(history)
            if len(calls) == 2:
                raise KeyboardInterrupt  # in the second run of a trial, after an epoch

        train(args, watch=watching)

    monkeypatch.setattr(tune, "train", killed)
    with pytest.raises(SystemExit, match="stopped; the same command goes on"):
        call(monkeypatch, tune, *arguments(tmp_path / "cut"))
    place = calls[-1]
    assert (place / "checkpoint.pt").exists()
    monkeypatch.setattr(tune, "train", train)
    call(monkeypatch, tune, *arguments(tmp_path / "cut"))
    assert (place / "metrics.json").exists()
    found, expected = (rows_of(tmp_path / name / "trials.csv")[0] for name in ("cut", "whole"))
    assert found == expected
    assert len(found) == 2
    # The value is the mean of the best validation figures.
    first = [content(path) for path in sorted((tmp_path / "cut").glob("*/[01]/"))]
    means = {
        round(np.mean([a["valid"]["mae"], b["valid"]["mae"]]), 9)
        for a, b in zip(first[::2], first[1::2], strict=True)
    }
    assert {round(float(row["value"]), 9) for row in found} == means
    printed = capsys.readouterr().out
    assert "train.py --data" in printed
    assert "test" not in printed.replace("pytest", "")
    changed = [*arguments(tmp_path / "cut"), "--alpha", 1]
    with pytest.raises(SystemExit, match="is of another search"):
        call(monkeypatch, tune, *changed)


def test_a_trial_that_is_worse_is_given_up(monkeypatch):
    optuna = pytest.importorskip("optuna", reason="the search needs the extra 'examples'")
    tune = load("experiments/tune", monkeypatch)
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))

    def rows(*maes):
        return [{"valid": {"mae": mae}} for mae in maes]

    good = study.ask()
    reports = tune.Reports(good)
    reports.begin([])
    reports(rows(1.0))
    reports(rows(1.0, 0.5))
    reports.begin([0.5])
    reports(rows(0.9))
    study.tell(good, 0.7)
    # Every evaluation is told once: the best of the run, on average with the runs before.
    assert study.trials[0].intermediate_values == pytest.approx({0: 1.0, 1: 0.5, 2: 0.7})
    poor = tune.Reports(study.ask())
    poor.begin([])
    with pytest.raises(optuna.TrialPruned):
        poor(rows(1.5, 1.4))  # a run that goes on tells all at once
    assert study.trials[1].intermediate_values == pytest.approx({0: 1.5, 1: 1.4})


def test_all_pictures_are_drawn_of_a_run(ablated, mmsa, monkeypatch, tmp_path):
    module = load("pictures", monkeypatch)
    save, drawn = module.save, {}
    monkeypatch.setattr(module, "save", lambda folder, name, figure: drawn.update({name: figure}))
    run = seed_folders(ablated, "TDMER")[0]
    call(monkeypatch, module, run, "--data", mmsa, "--before", run, "--out", tmp_path)
    panels = {name: len(figure.axes) for name, figure in drawn.items()}
    assert panels == {
        "training": 3, "subspaces-pca": 2, "subspaces-tsne": 2, "edges": 2, "reliability": 1,
        "classes": 1, "scores": 1, "confusion": 1, "contributions": 2, "steps": 1,
    }  # fmt: skip
    save(tmp_path, "confusion", drawn["confusion"])
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "confusion.png").stat().st_size < 60_000
