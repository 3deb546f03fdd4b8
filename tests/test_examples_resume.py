"""A run of the example that is cut short at any moment ends as if it had not been."""

import errno
import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="the examples need the extra 'examples'")
from accelerate.state import AcceleratorState

from tests.test_examples import EXAMPLES, load, rewrite, run, write_mmsa

OPTIONS = ["--width", "8", "--layers", "0", "--steps", "6", "--warmup", "2"]
STEPS = 2 * 3  # of all epochs
READINGS = 3 + 1  # of the validation split, and of the test split
FILES = {"run.json", "metrics.json", "config.json", "model.safetensors", "README.md"}


class Killed(BaseException):
    """Goes through every ``except`` of the script, as SIGKILL would."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mmsa(tmp_path_factory.mktemp("data") / "small.pkl")


@pytest.fixture
def train(monkeypatch, data):
    """Train on noise from every generator; ``setup`` may change the script before."""

    def run(folder, *options, setup=None):
        script = load("train", monkeypatch)
        import run_folder

        collate, file_lock, locks = script.collate, run_folder.FileLock, []

        def noisy(samples, **options):
            batch = collate(samples, **options)
            if not options:  # an evaluation, which draws nothing
                return batch
            noise = random.gauss(0, 0.1) + np.random.normal(0, 0.1)  # noqa: NPY002
            noise += torch.randn(()) / 10
            return batch._replace(inputs={m: x + noise for m, x in batch.inputs.items()})

        def lock(path):
            locks.append(file_lock(path))
            return locks[-1]

        arguments = ["train", "--data", data, "--out", folder, *OPTIONS, *options]
        # A new process starts from other states than those that the last one left.
        random.seed(99)
        np.random.seed(99)  # noqa: NPY002
        torch.manual_seed(99)
        with monkeypatch.context() as patch:
            patch.setattr(script, "collate", noisy)
            patch.setattr(run_folder, "FileLock", lock)
            patch.setattr(sys, "argv", [str(argument) for argument in arguments])
            if setup is not None:
                setup(script, patch)
            try:
                script.main()
            finally:
                AcceleratorState._reset_state(reset_partial_state=True)
                for taken in locks:  # as the end of a process does
                    taken.release(force=True)

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
    """Set a run up to stop in a step of training."""

    def setup(script, patch):
        patch.setattr(script.TDMERLoss, "forward", raising(script.TDMERLoss.forward, step, error))

    return setup


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


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
    """The folder of a run that was killed in its third epoch."""
    first = alone.with_name("cut")
    if not first.exists():
        with pytest.raises(Killed):
            train(first, setup=cut(5))
    return shutil.copytree(first, tmp_path / "run")


@pytest.mark.parametrize("step", range(STEPS))
def test_a_run_killed_in_any_step_ends_as_if_left_alone(train, tmp_path, whole, step):
    with pytest.raises(Killed):
        train(tmp_path, setup=cut(step))
    assert ("checkpoint.pt" in files(tmp_path)) == (step >= 2)
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole
    assert whole.keys() == FILES


@pytest.mark.parametrize("reading", range(READINGS))
def test_a_run_killed_in_any_evaluation_ends_as_if_left_alone(train, tmp_path, whole, reading):
    def setup(script, patch):
        patch.setattr(script, "measure", raising(script.measure, reading))

    with pytest.raises(Killed):
        train(tmp_path, setup=setup)
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole


def test_a_run_may_be_killed_again_and_again(train, tmp_path, whole):
    for _ in range(10):
        try:
            train(tmp_path, "--resume", setup=cut(3))
        except Killed:
            continue
        break
    assert files(tmp_path) == whole


def test_a_resumed_run_repeats_no_epoch(train, cut_run, whole):
    with pytest.raises(Killed):
        train(cut_run, "--resume", setup=cut(1))
    train(cut_run, "--resume", setup=cut(2))  # which is not reached
    assert files(cut_run) == whole


def test_early_stopping_counts_on(train, tmp_path):
    options = ["--steps", 18, "--patience", 4, "--lr", 1e-9]
    train(tmp_path / "alone", *options)
    epochs = len(json.loads((tmp_path / "alone" / "metrics.json").read_text())["history"])
    assert 3 <= epochs < 9
    folder = tmp_path / "cut"
    with pytest.raises(Killed):
        train(folder, *options, setup=cut(2 * epochs - 1))
    train(folder, *options, "--resume")
    assert files(folder) == files(tmp_path / "alone")


def test_a_refit_may_be_killed_too(train, tmp_path, whole, alone):
    """It ends within an epoch: four steps, of three an epoch."""
    chosen = shutil.copytree(alone, tmp_path / "chosen")
    found = json.loads(whole["metrics.json"]) | {"step": 4}
    (chosen / "metrics.json").write_text(json.dumps(found))
    options = ["--refit", chosen]
    train(tmp_path / "alone", *options)
    refitted = files(tmp_path / "alone")
    history = json.loads(refitted["metrics.json"])["history"]
    assert [row["step"] for row in history] == [3, 4]
    for step in range(4):
        folder = tmp_path / str(step)
        with pytest.raises(Killed):
            train(folder, *options, setup=cut(step))
        train(folder, *options, "--resume")
        assert files(folder) == refitted


def test_an_interrupted_run_can_be_resumed(train, tmp_path, whole):
    message = stop(train, tmp_path, setup=cut(4, KeyboardInterrupt))
    assert message == "train.py: stopped; --resume goes on after the last epoch"
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole


# Of the start, of each epoch, and the model's three and the figures of the end.
@pytest.mark.parametrize("write", range(8))
def test_a_crash_before_a_file_has_its_name(train, tmp_path, whole, write):
    def crash(script, patch):
        patch.setattr(os, "replace", raising(os.replace, write))

    with pytest.raises(Killed):
        train(tmp_path, setup=crash)
    after = files(tmp_path)
    assert len([name for name in after if name.endswith(".tmp")]) == 1
    for name, content in after.items():
        # Every file is whole: the outputs as they will be, the checkpoint readable.
        if name == "checkpoint.pt":
            history = torch.load(tmp_path / name, weights_only=True)["history"]
            assert len(history) == min(write - 1, 3)
        elif not name.endswith(".tmp"):
            assert content == whole[name]
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole


def test_what_another_process_left_half_written_is_removed(train, cut_run, whole):
    (cut_run / "checkpoint.pt.1.tmp").write_bytes(b"half")
    train(cut_run, "--resume")
    assert files(cut_run) == whole


def test_a_crash_before_the_checkpoint_is_given_up(train, tmp_path, whole):
    def crash(script, patch):
        patch.setattr(Path, "unlink", raising(Path.unlink, 5))  # after those of the start

    with pytest.raises(Killed):
        train(tmp_path, setup=crash)
    assert files(tmp_path).keys() == FILES | {"checkpoint.pt"}
    train(tmp_path, "--resume")
    assert files(tmp_path) == whole


def test_content_reaches_the_disk_before_its_name(monkeypatch, tmp_path):
    calls = []
    fsync, replace = os.fsync, os.replace
    temporary = f"file.{os.getpid()}.tmp"

    def synced(number):
        name = Path(os.readlink(f"/proc/self/fd/{number}")).name
        calls.append(f"sync {name}")
        assert name != temporary or os.fstat(number).st_size == len(b"content")
        fsync(number)

    def named(source, target):
        assert Path(source).read_bytes() == b"content"
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    load("run_folder", monkeypatch).write(tmp_path / "file", b"content")
    assert calls == [f"sync {temporary}", "name", f"sync {tmp_path.name}"]


def too_large(script, patch):
    import run_folder

    def write(path, content, write=run_folder.write):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
        try:
            write(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    patch.setattr(run_folder, "write", write)


def no_space(script, patch):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    patch.setattr(os, "fsync", raising(os.fsync, 0, error))


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


class Gadget:
    def __reduce__(self):
        return print, ("this would run",)


def flip(content):
    """Change one bit of the largest tensor, which torch.load would not notice."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensors = [part for part in archive.infolist() if "/data/" in part.filename]
        largest = max(tensors, key=lambda part: part.file_size)
        place = content.index(archive.read(largest)) + largest.file_size // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def saved(thing):
    def damage(content):
        path = Path(os.environ["PYTEST_TMP"])
        torch.save(thing, path)
        return path.read_bytes()

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4000],
        lambda content: content[:-1],
        lambda content: pickle.dumps({"epoch": 3}),
        flip,
        saved(Gadget()),
        saved([1, 2]),
        saved({"history": []}),
    ],
)
def test_a_damaged_checkpoint_is_refused(train, cut_run, damage, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path / "saved"))
    path = cut_run / "checkpoint.pt"
    content = damage(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    message = stop(train, cut_run, "--resume")
    assert f"{path} must be a whole checkpoint" in message
    assert "--overwrite" in message
    assert path.read_bytes() == content
    assert "this would run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["--steps", 8], "training.steps was 6, is 8"),
        (["--seed", 3], "training.seed was 0, is 3"),
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
    labels = pickle.loads(data.read_bytes())["test"]["regression_labels"] + np.float32(0.1)
    other = rewrite(data, tmp_path, test=labels).rename(tmp_path / data.name)
    message = stop(train, cut_run, "--resume", "--data", other)
    assert f"data.{data.name} was" in message
    assert message.count(" was ") == 1

    def update(script, patch):
        patch.setattr(torch, "__version__", "9.0")

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

    train(tmp_path, "--resume", setup=cut(0))  # which is not reached
    assert "finished" in capsys.readouterr().out
    assert files(tmp_path) == whole

    # Its files do not stand beside those of the next run.
    with pytest.raises(Killed):
        train(tmp_path, "--alpha", 0.2, setup=cut(4))
    assert files(tmp_path).keys() == {"run.json", "checkpoint.pt"}
    (tmp_path / "checkpoint.pt").unlink()
    (tmp_path / "metrics.json").write_text("{}")
    for content in ("{", "[3]", '{"data": 3}'):
        (tmp_path / "run.json").write_text(content)
        assert "run.json cannot be read" in stop(train, tmp_path, "--resume")


def test_a_folder_is_of_one_run_at_a_time(train, tmp_path, whole):
    held = []

    def meanwhile(script, patch):
        def measure(*arguments, measure=script.measure):
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(tmp_path / ".lock").acquire(timeout=0)
            held.append(True)
            return measure(*arguments)

        patch.setattr(script, "measure", measure)

    train(tmp_path, setup=meanwhile)
    assert len(held) == READINGS
    assert files(tmp_path) == whole
    with filelock.FileLock(tmp_path / ".lock"):
        for options in ([], ["--resume"], ["--overwrite"]):
            message = stop(train, tmp_path, *options)
            assert message == (
                f"train.py: {tmp_path} is in use by another run: --out takes another folder"
            )
    assert files(tmp_path) == whole


def test_several_processes_train_as_one(data, tmp_path, monkeypatch):
    """No sample counts twice, terms may be left out, and there is one writer."""
    splits = pickle.loads(data.read_bytes())
    for split in ("valid", "test"):  # 23 samples do not go into two equal parts
        splits[split] = {name: part[:23] for name, part in splits[split].items()}
    odd = tmp_path / "odd.pkl"
    odd.write_bytes(pickle.dumps(splits))
    options = ["--data", odd, *OPTIONS, "--steps", 15, "--batch-size", 8]
    options += ["--without", "rec", "own", "dc"]
    # Which processes draw apart.
    options += ["--dropout", 0, "--input-dropout", 0, "--feature-dropout", 0]
    run(monkeypatch, "train", "--out", tmp_path / "one", *options)

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", EXAMPLES / "train.py", "--out", tmp_path / "two", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch  2") == 1
    assert files(tmp_path / "two").keys() == FILES
    one, two = (
        json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("one", "two")
    )
    for before, after in zip(one["history"], two["history"], strict=True):
        for part in ("train", "valid", "weights"):
            assert after[part] == pytest.approx(before[part], rel=1e-5)
    assert two["epoch"] == one["epoch"]
    for part in ("test", "weights"):
        assert two[part] == pytest.approx(one[part], rel=1e-5)
    config = json.loads((tmp_path / "two" / "run.json").read_text())
    assert config["training"]["processes"] == 2


def test_runs_that_are_killed_by_the_system(data):
    benchmark = EXAMPLES / "benchmarks" / "resume.py"
    command = [sys.executable, benchmark, "--kills", "1", "--data", data, *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("5 of 5") == 1
