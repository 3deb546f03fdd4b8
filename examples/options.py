"""The options of train.py: those with ranges, and those that are the arguments of a class."""

import argparse
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from tdmer import TDMER, TDMERLoss
from tdmer.baselines import SYSTEMS, BaselineLoss
from tdmer.objective import TERMS
from tdmer.pretrained import Pretrained


def parse_args(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line of train.py, or these arguments."""
    parser = argparse.ArgumentParser(
        description=description.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    chooser = argparse.ArgumentParser(add_help=False)
    for each in (parser, chooser):
        # Every system has options of its own: it is read first.
        choices = ["tdmer", *SYSTEMS]
        each.add_argument("--system", choices=choices, default="tdmer", help="what is trained")
    model, loss = parts_of(chooser.parse_known_args(arguments)[0].system)
    add("--data", type=Path, help="MMSA's layout, store or .npz; without it, synthetic data")
    add("--label", default="label", help="array of the labels in an .npz")
    add("--group", help="array of the speakers in an .npz; else the video in the id is the group")
    add("--split", default="official", help="or folds:K/k, random:SEED, by group")
    add("--modalities", nargs="+", help="use only these")
    help_ = "features of each group by themselves: of these modalities, or of all"
    add("--normalize-groups", nargs="*", default=False, metavar="MODALITY", help=help_)
    add("--choose-modalities", action="store_true", help="leave out what validation is better off")
    add("--out", type=Path, default=Path("runs/latest"), help="run folder")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    again.add_argument("--overwrite", action="store_true", help="give up an unfinished run there")
    add("--refit", type=Path, metavar="RUN", help="train on train and valid as long as RUN chose")
    add("--seed", type=number(int), default=0)
    add("--steps", type=number(int, 1), default=1000, help="most steps of the optimizer")
    add("--patience", type=number(int, 1), default=300, help="steps without a better epoch to stop")
    add("--batch-size", type=number(int, 1), default=32, help="of all processes together")
    add("--accumulate", type=number(int, 1), default=1, help="batches per step of the optimizer")
    add("--lr", type=number(float, below=1e6), default=1e-3, help="learning rate after the warm-up")
    add("--warmup", type=number(int, 1), default=100, help="steps until the learning rate is full")
    add("--average", type=number(float, below=1), default=0.99, help="decay of averaged weights")
    add("--weight-decay", type=number(float, below=1e6), default=1e-2)
    add("--clip", type=number(float, below=1e6), default=1.0, help="greatest norm of the gradient")
    add("--modality-dropout", type=number(float, below=1), default=0.0, help="share left out")
    add("--precision", choices=["no", "bf16"], default="no", help="mixed precision")
    add("--cpu", action="store_true", help="use no accelerator")
    add("--threads", type=number(int, 1), default=1, help="CPU threads per process")
    add("--values", type=float, nargs="+", default=[-3, -2, -1, 0, 1, 2, 3], help="of scores")
    add("--l1-weight", type=float, default=0.5, help="of the absolute error, for scores")
    add("--label-smoothing", type=number(float, below=1), default=0.1, help="of the task")
    if loss is TDMERLoss:
        add("--without", nargs="*", choices=TERMS, default=[], help="terms to leave out")
    for part in (model, loss):
        add_arguments(parser, part)
    args = parser.parse_args(arguments)
    named, kept = args.normalize_groups, args.modalities
    if named and kept and not set(named) <= set(kept):
        parser.error(f"argument --normalize-groups: must be some of {kept}, got {named}")
    if named == []:  # the option alone
        args.normalize_groups = True
    return args


def parts_of(system: str) -> tuple[type[Pretrained], type[TDMERLoss] | type[BaselineLoss]]:
    """Return the class of the model and of its objective."""
    return (TDMER, TDMERLoss) if system == "tdmer" else (SYSTEMS[system], BaselineLoss)


def number(kind: type, least: float = 0, below: float = math.inf) -> Callable[[str], Any]:
    """Return what reads a number of a range from the command line."""

    def read(text: str) -> Any:
        if not least <= kind(text) < below:
            raise argparse.ArgumentTypeError(f"must be in [{least}, {below}), got {text}")
        return kind(text)

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


def by_modality(kind: type) -> Callable[[str], Any]:
    """Return what reads one number, or one for each modality: ``text=0.5,audio=0.8``."""

    def read(text: str) -> Any:
        if "=" not in text:
            return kind(text)
        parts = [part.partition("=") for part in text.split(",")]
        return {name: kind(value) for name, _, value in parts}

    read.__name__ = kind.__name__
    return read


def add_arguments(parser: argparse.ArgumentParser, part: type) -> None:
    """Add every argument of a class whose default is a number or a word, as --its-name."""
    for name, argument in inspect.signature(part).parameters.items():
        kind, option = type(argument.default), f"--{name.replace('_', '-')}"
        if kind in (int, float, str):
            named = any(get_origin(x) is Mapping for x in get_args(argument.annotation))
            parser.add_argument(
                option,
                type=by_modality(kind) if named else kind,
                default=argument.default,
                help=f"of {part.__name__}" + named * ", or by name: text=X,audio=Y",
            )


def take_arguments(options: dict[str, Any], part: Callable[..., Any]) -> dict[str, Any]:
    """Remove the arguments of a class or function from the options, and return them."""
    names = [name for name in inspect.signature(part).parameters if name in options]
    return {name: options.pop(name) for name in names}
