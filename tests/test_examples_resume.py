"""A run of the example that is cut short at any moment ends as if it had not been."""

import errno
import functools
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.test_examples import EXAMPLES, load, write_mmsa

BENCHMARK = EXAMPLES / "benchmarks" / "resume.py"
OPTIONS = ["--width", "8", "--layers", "0", "--seeds", "2", "--epochs", "2"]
SEED = 2 * (2 + 1) + 4  # batches of a seed: of two epochs, and of four readings of the test split


class Killed(BaseException):
    """Goes through every ``except`` of the script, as SIGKILL would."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mmsa(tmp_path_factory.mktemp("data") / "small.pkl")


@pytest.fixture
def train(monkeypatch, data):
    """Run the script on noise from every generator; ``setup`` may change the module before."""

    def noisy(samples, **options):
        batch = module.collate(samples, **options)
        noise = random.gauss(0, 0.1) + np.random.normal(0, 0.1)  # noqa: NPY002
        return batch._replace(inputs={m: x + noise for m, x in batch.inputs.items()})

    module = load("train")

    def run(folder, *options, setup=None):
        script = load("train")
        script.collate = noisy
        script.draw = lambda *_: b"picture"
        script.bootstrap_interval = functools.partial(script.bootstrap_interval, samples=5)
        arguments = ["train", "--data", data, "--out", folder, *OPTIONS, *options]
        # A new process starts from other states than those that the last one left.
        random.seed(99)
        np.random.seed(99)  # noqa: NPY002
        torch.manual_seed(99)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(argument) for argument in arguments])
            if setup is not None:
                setup(script, patch)
            script.main()

    return run


def raising(function, when, error=Killed):
    """Return the function, but raise the error in place of call number ``when``, from 0."""
    calls = iter(range(when + 1))

    def wrapped(*args, **options):
        if next(calls, None) == when:
            raise error
        return function(*args, **options)

    return wrapped


def cut(step, error=Killed):
    """Set a run up to stop before a batch, of training or of evaluation."""

    def setup(script, patch):
        script.to_device = raising(script.to_device, step, error)

    return setup


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop(train, *arguments, **options):
    """Return the one line that a run stops with."""
    with pytest.raises(SystemExit) as caught:
        train(*arguments, **options)
    message = caught.value.code
    assert isinstance(message, str)  # which Python prints, and exits with 1
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "alone"


@pytest.fixture
def whole(train, alone):
    """The files of a run that was left alone."""
    if not alone.exists():
        train(alone)
    return files(alone)


@pytest.fixture
def cut_run(train, alone, tmp_path):
    """The folder of a run that was killed in the second epoch of the second seed."""
    first = alone.with_name("cut")
    if not first.exists():
        with pytest.raises(Killed):
            train(first, setup=cut(SEED + 4))
    return shutil.copytree(first, tmp_path / "run")


@pytest.mark.parametrize("step", [1, 3, 5, 7, SEED, SEED + 2, SEED + 4, SEED + 6, 2 * SEED - 1])
def test_a_run_killed_at_any_step_ends_as_if_left_alone(train, tmp_path, whole, step):
    with pytest.raises(Killed):
        train(tmp_path, setup=cut(step))
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole


def test_a_run_may_be_killed_again_and_again(train, tmp_path, whole):
    for _ in range(10):
        try:
            train(tmp_path, "--resume", setup=cut(7))
        except Killed:
            continue
        break
    assert files(tmp_path) == whole


def test_the_step_after_the_last_is_not_reached(train, tmp_path, whole):
    train(tmp_path, setup=cut(2 * SEED))
    assert files(tmp_path) == whole


def test_early_stopping_counts_on(train, tmp_path):
    options = ["--epochs", 9, "--patience", 2, "--lr", 1e-9, "--seeds", 1]
    train(tmp_path / "alone", *options)
    rows = files(tmp_path / "alone")["epochs.csv"].count(b"\n") - 1
    assert 3 <= rows < 9
    for step in (3 * rows - 3, 3 * rows):  # in the last epoch, and after it
        folder = tmp_path / str(step)
        with pytest.raises(Killed):
            train(folder, *options, setup=cut(step))
        train(folder, *options, "--resume")
        assert files(folder) == files(tmp_path / "alone")


def test_an_interrupted_run_can_be_resumed(train, tmp_path, whole, capsys):
    train(tmp_path, setup=cut(SEED + 4, KeyboardInterrupt))
    assert "--resume goes on" in capsys.readouterr().out
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["interrupted"]
    assert [seed["epoch"] for seed in summary["seeds"]][1] == 0
    assert files(tmp_path).keys() == whole.keys() | {"checkpoint.safetensors"}
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole


def test_an_interrupt_in_the_first_epoch_leaves_nothing(train, tmp_path, whole):
    assert "nothing to keep" in stop(train, tmp_path, setup=cut(1, KeyboardInterrupt))
    assert files(tmp_path).keys() == {"config.json"}
    train(tmp_path)
    assert files(tmp_path) == whole


# Of the start, of an epoch, of a seed, of the run: the checkpoint, and each of the other files.
@pytest.mark.parametrize("write", [0, 1, 2, 4, 8, 9, 10, 11])
def test_a_crash_before_a_file_has_its_name(train, tmp_path, whole, write):
    before = {}

    def crash(script, patch):
        replace = os.replace

        def remember(source, target):
            before.clear()
            before.update(files(tmp_path))
            replace(source, target)

        patch.setattr(os, "replace", raising(remember, write))

    with pytest.raises(Killed):
        train(tmp_path, setup=crash)
    after = files(tmp_path)
    assert [name for name in after if name.endswith(".tmp")]
    for name, content in after.items():
        # Every file is whole: the outputs as they will be, the checkpoint readable.
        if name == "checkpoint.safetensors":
            load("train").read_checkpoint(tmp_path / name)
        elif not name.endswith(".tmp"):
            assert content == whole[name]
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole


def test_content_reaches_the_disk_before_its_name(monkeypatch, tmp_path):
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(number):
        name = Path(os.readlink(f"/proc/self/fd/{number}")).name
        calls.append(f"sync {name}")
        assert name != "file.tmp" or os.fstat(number).st_size == len(b"content")
        fsync(number)

    def named(source, target):
        assert Path(source).read_bytes() == b"content"
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    load("train").write(tmp_path / "file", b"content")
    assert calls == ["sync file.tmp", "name", f"sync {tmp_path.name}"]


def too_large(script, patch):
    def write(path, content, write=script.write):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
        try:
            write(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    script.write = write


def no_space(script, patch):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # The second: of the last part of the run, after its config.json.
    patch.setattr(os, "fsync", raising(os.fsync, 2, error))


@pytest.mark.parametrize(
    ("fault", "reason"), [(too_large, "File too large"), (no_space, "No space left on device")]
)
def test_a_full_disk_leaves_the_checkpoint_before(train, cut_run, whole, fault, reason):
    before = files(cut_run)
    message = stop(train, cut_run, "--resume", setup=fault)
    assert reason in message
    assert "--resume" in message
    assert files(cut_run) == before
    train(cut_run, "--resume")
    assert files(cut_run) == whole


def flip(content):
    place = len(content) - 100
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "cannot be read"),
        (lambda content: content[:4000], "cannot be read"),
        (lambda content: content[:-1], "cannot be read"),
        (lambda content: content + b"\0", "cannot be read"),
        (lambda content: pickle.dumps({"epoch": 3}), "cannot be read"),
        (flip, "is damaged"),
        (lambda content: content.replace(b'epochs\\": 1', b'epochs\\": 2'), "is damaged"),
        (lambda content: content.replace(b"tdmer-train-1", b"tdmer-train-0"), "'tdmer-train-0'"),
    ],
)
def test_a_damaged_checkpoint_is_refused(train, cut_run, damage, reason):
    path = cut_run / "checkpoint.safetensors"
    content = damage(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    message = stop(train, cut_run, "--resume")
    assert str(path) in message
    assert reason in message
    assert "--overwrite" in message
    assert path.read_bytes() == content


def test_a_model_is_no_checkpoint(train, cut_run):
    save_file({"weight": torch.zeros(2)}, cut_run / "checkpoint.safetensors")
    assert "got None" in stop(train, cut_run, "--resume")


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["--epochs", 4], "training.epochs was 2, is 4"),
        (["--seeds", 3], "training.seeds was 2, is 3"),
        (["--threads", 2], "training.threads was 1, is 2"),
        (["--width", 16, "--lr", 0.5], "model.width was 8, is 16; training.lr was 0.001, is 0.5"),
        (["--without", "con"], "loss.without was [], is ['con']"),
    ],
)
def test_changed_options_are_refused(train, cut_run, alone, whole, options, change):
    for folder in (cut_run, alone):
        before = files(folder)
        assert change in stop(train, folder, "--resume", *options)
        assert files(folder) == before


def test_changed_data_and_versions_are_refused(train, cut_run, data, tmp_path):
    splits = pickle.loads(data.read_bytes())
    splits["test"]["regression_labels"][0] += 0.1
    other = tmp_path / data.name
    other.write_bytes(pickle.dumps(splits))
    message = stop(train, cut_run, "--resume", "--data", other)
    assert "data.sha256 was" in message
    assert message.count(" was ") == 1

    def update(script, patch):
        def configure(*args, configure=script.configure):
            config = configure(*args)
            assert config["versions"]["torch"] == torch.__version__
            return {**config, "versions": {**config["versions"], "torch": "9.0"}}

        script.configure = configure

    assert "versions.torch was" in stop(train, cut_run, "--resume", setup=update)


def test_an_unfinished_run_is_given_up_only_when_told(train, cut_run, whole):
    before = files(cut_run)
    message = stop(train, cut_run)
    for way in ("--resume", "--overwrite", "--out"):
        assert way in message
    assert files(cut_run) == before
    train(cut_run, "--overwrite")
    assert files(cut_run) == whole


def test_a_finished_run_is_replaced_or_left(train, tmp_path, whole, capsys):
    train(tmp_path, "--resume")  # nothing to resume: it starts
    assert files(tmp_path) == whole

    def untrained(script, patch):
        script.train = None

    with pytest.raises(SystemExit) as caught:
        train(tmp_path, "--resume", setup=untrained)
    assert not caught.value.code
    assert "finished" in capsys.readouterr().out
    assert files(tmp_path) == whole

    # Its files do not stand beside those of the next run.
    with pytest.raises(Killed):
        train(tmp_path, "--alpha", 0.2, setup=cut(4))
    assert files(tmp_path).keys() == {"config.json", "checkpoint.safetensors"}
    (tmp_path / "checkpoint.safetensors").unlink()
    (tmp_path / "metrics.json").write_text("{}")
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        assert "config.json cannot be read" in stop(train, tmp_path, "--resume")


def test_a_checkpoint_holds_tensors_and_json_alone(train, cut_run):
    with safe_open(cut_run / "checkpoint.safetensors", "pt") as file:
        state = json.loads(file.metadata()["state"])
        names = list(file.keys())
    assert [row["epoch"] for row in state["rows"]] == [0, 1, 0]
    assert [result["seed"] for result in state["results"]] == [0]
    assert state["current"]["generators"].keys() == {"python", "numpy", "torch", "cuda"}
    assert "run.kept.predictions" in names


def test_a_finished_seed_is_not_read_again(train, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, setup=cut(SEED))
    run = load("train").read_checkpoint(tmp_path / "checkpoint.safetensors")
    assert [result["seed"] for result in run["results"]] == [0]
    assert run["current"] is None


def test_runs_that_are_killed_by_the_system(data):
    command = [sys.executable, BENCHMARK, "--kills", "2", "--data", data, *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("5 of 5") == 2
