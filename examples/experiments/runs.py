"""Many runs of train.py: planned and checked, done two at a time if wished, and never twice.

Every run has a folder of its own below that of the experiment, named by its variant, split and
seed. What is finished there is not trained again, and what was cut short goes on from its last
epoch, so that the same command, after a kill at any moment, ends in the same figures.
"""

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState, GradientState

sys.path.append(str(Path(__file__).parents[1]))
from options import number, parse_args, take_arguments
from splits import Samples, load_splits
from train import train


class Run(NamedTuple):
    """A variant with one split and one seed."""

    variant: str
    split: str
    seed: int
    folder: Path
    options: list[str]
    refit: bool
    baseline: bool

    def commands(self) -> list[argparse.Namespace]:
        """Return the options of train.py: of the run, and of its refit if there is one."""
        own = [*self.options, "--split", self.split, "--seed", str(self.seed), "--resume"]
        places = [["--out", str(self.folder)]]
        if self.refit:
            places.append(["--out", f"{self.folder}-refit", "--refit", str(self.folder)])
        return [parse_args("A run.", own + place) for place in places]


def add_options(parser: argparse.ArgumentParser, *, seeds: int) -> None:
    """Add what says which runs there are, where they are, and how many at a time."""
    add = parser.add_argument
    add("--split", nargs="+", default=["official"], help="as train.py takes them, or folds:K")
    add("--seeds", type=number(int, 1), default=seeds, help=f"how many (default: {seeds})")
    add("--jobs", type=number(int, 1), default=1, help="runs at a time (default: 1)")


def plan(
    args: argparse.Namespace,
    variants: Mapping[str, str],
    options: Sequence[str],
    *,
    refit: bool = False,
    seeds: int | None = None,
) -> list[Run]:
    """Return every run, after checking its options, so that none starts if one is wrong.

    Args:
        args: The options of :func:`add_options`, and the folder ``out``.
        variants: Name → options of train.py, or ``sklearn``.
        options: Of train.py, for all variants.
        refit: Whether each is trained again on train and valid together.
        seeds: How many, if not those of ``args``.

    Raises:
        ValueError: Two variants would have one folder.
    """
    if len({slug(name) for name in variants}) < len(variants):
        raise ValueError(f"variants must have names of their own, got {list(variants)}")
    runs = []
    for name, text in variants.items():
        own = shlex.split(text)
        baseline = own[:1] == ["sklearn"]
        for split in (one for several in args.split for one in expand(several)):
            for seed in range(args.seeds if seeds is None else seeds):
                folder = args.out / slug(name) / slug(split) / f"seed-{seed}"
                every = [*options, *own[baseline:]]
                runs.append(Run(name, split, seed, folder, every, refit, baseline))
                runs[-1].commands()
    return runs


def load_data(run: Run) -> dict[str, Samples]:
    """Return the splits of a run."""
    args = run.commands()[0]
    return load_splits(args.data, **take_arguments(vars(args), load_splits))


def expand(split: str) -> list[str]:
    """Return all folds of ``folds:K``, and any other split as it is."""
    folds = re.fullmatch(r"folds:(\d+)", split)
    return [f"{split}/{fold}" for fold in range(int(folds[1]))] if folds else [split]


def slug(name: str) -> str:
    """Return a name as that of a folder."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def execute_all(runs: Sequence[Run], jobs: int, *, fresh: bool = False) -> None:
    """Do what is left of every run; if it is to be fresh, each in a process of its own."""
    if jobs == 1 and not fresh:
        report(map(execute, runs), len(runs))
        return
    # What is finished is only checked: that needs no process.
    finished = [(run.commands()[-1].out / "metrics.json").exists() for run in runs]
    done = [execute(run) for run, over in zip(runs, finished, strict=True) if over]
    left = [run for run, over in zip(runs, finished, strict=True) if not over]
    if not left:
        report(done, len(runs))
        return
    # A process that is forked could not use an accelerator.
    context = multiprocessing.get_context("spawn")
    per_child = 1 if fresh else None
    with ProcessPoolExecutor(jobs, context, follow_parent, max_tasks_per_child=per_child) as pool:
        try:
            report(itertools.chain(done, pool.map(execute, left)), len(runs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def follow_parent() -> None:
    """End this process with the one that started it, or its run would go on, and keep the folder.

    What is killed cannot stop its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def report(done: Iterable[Run], count: int) -> None:
    """Say which runs are done, as they are."""
    for place, run in enumerate(done, 1):
        print(f"{place} of {count}: {run.folder}", flush=True)


def execute(run: Run) -> Run:
    """Do what is left of a run. What it says goes nowhere: it speaks of the test split."""
    for args in run.commands():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if run.baseline:
                    from baselines import fit  # scikit-learn is needed only here

                    fit(run.variant, args)
                else:
                    train(args, watch=Clock(args.out))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{args.out}: {error}") from None
        finally:
            # The next run may have another precision.
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    return run


class Clock:
    """Writes down how long every epoch took, in ``clock.jsonl`` beside the run.

    What was measured does not belong to the figures of a run, which are the same in every
    repetition.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock.jsonl"
        self.before = time.perf_counter()

    def __call__(self, history: list[dict[str, Any]]) -> None:
        """Note the epoch that has ended."""
        now = time.perf_counter()
        row = {"epoch": history[-1]["epoch"], "seconds": now - self.before, "peak": peak_memory()}
        with self.file.open("a") as file:
            file.write(f"{json.dumps(row)}\n")
        self.before = now


def peak_memory() -> int:
    """Return the most memory, in bytes, of the accelerator, or of this process so far."""
    if torch.accelerator.is_available():
        return int(torch.accelerator.max_memory_allocated())
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
