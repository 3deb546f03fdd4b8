"""Search for better options of train.py with Optuna, by the validation split alone.

    pip install "tdmer[examples]"    # brings Optuna
    python examples/experiments/tune.py --data mosi.pkl --trials 50
    python examples/experiments/tune.py --data mosi.pkl --trials 50 --only lr dropout input_dropout

All other options are those of train.py and hold for every trial; with ``--system`` any system is
searched, by the options that it has. A trial trains every split with every seed; its value is the
mean of the best validation figures. After every evaluation it is set against the median of the
trials before, and given up where it is worse. No figure of the test split is read here.

The study is ``study.db`` in ``--out`` (SQLite): the same command goes on where it was killed, with
the trial that was under way first, from its last epoch. ``--trials`` counts all trials of the
study. At last there are trials.csv and trials.md, and the best options are printed, for train.py.
"""

import argparse
import contextlib
import hashlib
import io
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from runs import expand
from tables import spread, table, write_csv, write_markdown

sys.path.append(str(Path(__file__).parents[1]))
from accelerate.state import AcceleratorState, GradientState
from options import number, parse_args
from train import train

# What is searched, of the options that the system has.
SPACE = {
    "lr": FloatDistribution(2e-4, 5e-3, log=True),
    "weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
    "batch_size": CategoricalDistribution((16, 32, 64)),
    "width": CategoricalDistribution((32, 64, 128)),
    "dropout": FloatDistribution(0.0, 0.7),
    "input_dropout": FloatDistribution(0.0, 0.7),
    "feature_dropout": FloatDistribution(0.0, 0.7),
    "modality_dropout": FloatDistribution(0.0, 0.5),
    "label_smoothing": FloatDistribution(0.0, 0.3),
    "l1_weight": FloatDistribution(0.0, 2.0),
    "alpha": FloatDistribution(1e-2, 1e2, log=True),
    "rec_weight": FloatDistribution(1e-2, 1e2, log=True),
    "beta": FloatDistribution(1e-2, 1e1, log=True),
    "gamma": FloatDistribution(1e-2, 1e1, log=True),
    "delta": FloatDistribution(1e-1, 1e1, log=True),
    "epsilon": FloatDistribution(1e-2, 1e1, log=True),
}


def main() -> None:
    """Search, write and show."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="All other options are those of examples/train.py.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/tune"), help="folder")
    add("--trials", type=number(int, 1), default=30, help="in all (default: 30)")
    add("--seeds", type=number(int, 1), default=1, help="of a trial (default: 1)")
    add("--split", nargs="+", default=["official"], help="as train.py takes them, or folds:K")
    add("--only", nargs="+", choices=[*SPACE], default=[*SPACE], help="search only these")
    args, options = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.out / ".lock", timeout=0), database(args.out / "study.db") as storage:
            search(args, options, storage)
    except Timeout:
        raise SystemExit(f"tune.py: {args.out} is in use by another search") from None
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"tune.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("tune.py: stopped; the same command goes on") from None


@contextlib.contextmanager
def database(path: Path) -> Iterator[RDBStorage]:
    """Open the database of the search, and close it."""
    storage = RDBStorage(f"sqlite:///{path}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def search(args: argparse.Namespace, options: list[str], storage: RDBStorage) -> None:
    """Do the trials that are left."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = vars(parse_args("A trial.", options))
    space = {name: SPACE[name] for name in args.only if name in known}
    setting = {"options": options, "split": args.split, "seeds": args.seeds, "space": [*space]}
    study = optuna.create_study(
        storage=storage,
        study_name="tune",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        load_if_exists=True,
    )
    before = study.user_attrs.get("setting", setting)
    if before != setting:
        raise ValueError(f"{args.out} is of another search, {before}: --out takes another folder")
    study.set_user_attr("setting", setting)
    for killed in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(killed.number, state=TrialState.FAIL)
    while len(over(study.trials)) < args.trials:
        # Seeded anew for every trial, a search that was killed comes to the same options again,
        # and so to the same folder, where the run goes on.
        seed = len(over(study.trials))
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=10)
        trial = study.ask(space)
        try:
            value = attempt(trial, args, options)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            print(f"trial {seed}: given up")
            continue
        study.tell(trial, value)
        print(f"trial {seed}: {value:.4f}", flush=True)
    tell(study, args, options)


def over(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that ended by themselves."""
    return [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def attempt(trial: Trial, args: argparse.Namespace, options: list[str]) -> float:
    """Train the runs of a trial, and return the mean of their best validation figures, less best.

    Raises:
        optuna.TrialPruned: It is not worth going on.
    """
    own = [text for name, value in trial.params.items() for text in as_option(name, value)]
    name = hashlib.sha256(json.dumps(trial.params, sort_keys=True).encode()).hexdigest()[:12]
    folder, reports = args.out / name, Reports(trial)
    best: list[float] = []
    for place, (split, seed) in enumerate(units(args)):
        out = folder / str(place)
        where = ["--split", split, "--seed", str(seed), "--resume", "--out", str(out)]
        reports.begin(best)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # It speaks of the test split.
                train(parse_args("A trial.", [*options, *own, *where]), watch=reports)
        except optuna.TrialPruned:
            shutil.rmtree(folder)
            raise
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        best.append(figure_of(json.loads((out / "metrics.json").read_bytes())))
    return sum(best) / len(best)


class Reports:
    """Tells Optuna after every evaluation how a trial stands.

    Args:
        trial: The trial, which may have been begun before: what was reported is not told again.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.finished: list[float] = []
        self.first = self.step = 0

    def begin(self, finished: Sequence[float]) -> None:
        """Begin the next run, after these figures."""
        self.finished, self.first = list(finished), self.step

    def __call__(self, history: list[dict[str, Any]]) -> None:
        """Report what is new, as the mean of the best so far of every run."""
        for place in range(self.step - self.first, len(history)):
            best = min(figure_of(row) for row in history[: place + 1])
            known = [*self.finished, best]
            self.trial.report(sum(known) / len(known), self.step)
            self.step += 1
        if self.trial.should_prune():
            raise optuna.TrialPruned


def figure_of(row: dict[str, Any]) -> float:
    """Return the validation figure of an epoch, less being better."""
    valid = row["valid"]
    return float(valid["mae"] if "mae" in valid else 1 - valid["accuracy"])


def units(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Yield the splits and seeds of a trial."""
    for split in (one for several in args.split for one in expand(several)):
        for seed in range(args.seeds):
            yield split, seed


def as_option(name: str, value: Any) -> list[str]:
    """Return an option of the command line."""
    return [
        f"--{name.replace('_', '-')}",
        f"{value:.4g}" if isinstance(value, float) else str(value),
    ]


def tell(study: optuna.Study, args: argparse.Namespace, options: list[str]) -> None:
    """Write the trials, and print the best and its options."""
    done = over(study.trials)
    rows = [
        {"trial": place, "value": trial.value, "given_up": trial.state == TrialState.PRUNED}
        | trial.params
        for place, trial in enumerate(done)
    ]
    found = next(args.out.glob("*/0/run.json"))
    config = json.loads(found.read_bytes())
    about = {
        "figures of": "the validation split: MAE, or 1 - accuracy; mean over splits and seeds",
        "data, SHA-256": config["data"],
        "options of all": shlex.join(options),
        "splits, seeds": [list(unit) for unit in units(args)],
        "versions": config["versions"] | {"optuna": optuna.__version__},
    }
    write_csv(args.out / "trials.csv", rows, about)
    ended = sorted((row for row in rows if not row["given_up"]), key=lambda row: row["value"])
    lines = [
        [
            str(row["trial"]),
            spread(row["value"], float("nan"), 4),
            *(f"{row[name]:.4g}" for name in study.best_params),
        ]
        for row in ended[:10]
    ]
    headings = ["trial", "value", *study.best_params]
    title = f"The best of {len(rows)} trials, {len(rows) - len(ended)} given up"
    write_markdown(args.out / "trials.md", title, headings, lines, about)
    print(f"\n{title}\n\n{table(headings, lines)}")
    best = [text for name, value in study.best_params.items() for text in as_option(name, value)]
    print(f"train.py {shlex.join([*options, *best])}")


if __name__ == "__main__":
    main()
