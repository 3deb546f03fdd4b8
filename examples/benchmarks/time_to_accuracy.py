"""Seconds of training until the validation MAE of MOSI is 0.96: TDMER, MulT, MISA, and MMSA's two.

MMSA trains with its own loop, options, data loader and metrics, on the same file. Its MISA reads
text through BERT, which is fine-tuned; here it gets the features of the file in BERT's place, and
audio and video with pads to the length of the text, which it takes them to have. Ours train with
examples/train.py and its defaults, TDMER with the input dropout of the other systems; "quick" has a
short warm-up, averaged weights that follow soon, and twice the learning rate. All seconds are
counted from the call, with reading the data and validation; a run ends where it reaches the figure,
or where its own early stopping ends it. The runs take turns. From the root of the repository, on a
machine that does nothing else:

    pip install --no-deps MMSA
    python examples/benchmarks/time_to_accuracy.py --data mosi.pkl
"""

import argparse
import contextlib
import csv
import importlib
import io
import json
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch
from peers import from_mmsa
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1]))
from options import parse_args
from train import train

OURS = {
    "TDMER": "--system tdmer --input-dropout 0.3",
    "TDMER, quick": "--system tdmer --input-dropout 0.3 --warmup 20 --average 0.9 --lr 0.002",
    "MulT": "--system mult",
    "MISA": "--system misa",
}
MMSAS = {"MulT (MMSA)": "MULT", "MISA (MMSA)": "MISA"}


class ReachedError(Exception):
    """The figure is reached: how a loop that is not ours is ended."""


class Watch:
    """Notes the validation MAE after every epoch, and ends the run that reaches the threshold."""

    def __init__(self, threshold: float) -> None:
        self.start = time.perf_counter()
        self.threshold = threshold
        self.curve: list[float] = []
        self.seconds = float("nan")

    def __call__(self, mae: float) -> None:
        """Note the figure of an epoch."""
        self.curve.append(mae)
        if mae <= self.threshold:
            self.seconds = time.perf_counter() - self.start
            raise ReachedError


def train_ours(own: str, data: Path, seed: int, watch: Watch) -> None:
    """Train by the recipe of the reference example."""
    with tempfile.TemporaryDirectory() as out:
        options = ["--data", str(data), "--seed", str(seed), "--out", f"{out}/run"]
        args = parse_args("A run.", [*own.split(), *options])
        train(args, watch=lambda history: watch(history[-1]["valid"]["mae"]))


def train_mmsas(name: str, data: Path, seed: int, watch: Watch) -> None:
    """Train by MMSA's own loop and options for MOSI."""
    # It counts GPUs with it, and gives the schedule an argument that PyTorch no longer has.
    sys.modules.setdefault("pynvml", types.ModuleType("pynvml"))
    trainer = from_mmsa(f"trains.singleTask.{name}", name)
    loop = importlib.import_module(trainer.__module__)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    loop.ReduceLROnPlateau = lambda *args, verbose, **options: plateau(*args, **options)
    loop.tqdm = contextlib.nullcontext

    kind = from_mmsa(f"models.singleTask.{name}", name)
    importlib.import_module(kind.__module__).BertTextEncoder = Features
    root = Path(sys.modules["MMSA"].__path__[0])
    config = json.loads((root / "config" / "config_regression.json").read_bytes())
    own = config[name.lower()]
    args = Options(
        config["datasetCommonParams"]["mosi"]["unaligned"]
        | own["commonParams"]
        | own["datasetParams"]["mosi"]
        | dict.fromkeys(("feature_T", "feature_A", "feature_V"))
        | {"dataset_name": "mosi", "train_mode": "regression", "model_name": name}
        | {"custom_feature": str(data), "device": "cpu", "cur_seed": seed}
    )
    torch.manual_seed(seed)
    # With "use_bert" it would read tokens, where the features of the file are wanted.
    reading = Options(args | {"use_bert": False})
    loaders = from_mmsa("data_loader", "MMDataLoader")(reading, 0)
    args["feature_dims"], args["seq_lens"] = reading["feature_dims"], reading["seq_lens"]
    model = WithMask(kind(args)) if name == "MISA" else kind(args)

    training = trainer(args)
    measure = training.do_test

    def do_test(*args: Any, **options: Any) -> dict[str, float]:
        found: dict[str, float] = measure(*args, **options)
        watch(float(found["MAE"]))
        return found

    training.do_test = do_test
    with tempfile.TemporaryDirectory() as out:
        args["model_save_path"] = f"{out}/model.pth"
        training.do_train(model, loaders)


class Options(dict[str, Any]):
    """Options as MMSA reads them, by name or as attributes."""

    __getattr__ = dict.__getitem__


class WithMask(nn.Module):
    """MISA with features for its text, behind the rows of tokens, mask and types, and pads."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.Model = model  # from which its loop reads the codes of the last batch

    def forward(self, text: Tensor, audio: Tensor, video: Tensor) -> Any:
        """Return what MISA does."""
        mask = text.abs().sum(dim=2, keepdim=True).ne(0).expand(-1, -1, 3)
        audio, video = (F.pad(x, (0, 0, 0, len(text[0]) - len(x[0]))) for x in (audio, video))
        return self.Model(torch.cat([mask, text], dim=2).transpose(1, 2), audio, video)


class Features(nn.Module):
    """In BERT's place: the features that are there."""

    def __init__(self, **options: Any) -> None:
        super().__init__()

    def forward(self, text: Tensor) -> Tensor:
        """Return them, with zeros to the width that MISA takes all text to have."""
        features = text[:, 3:].transpose(1, 2)
        return F.pad(features, (0, 768 - features.shape[2]))


def main() -> None:
    """Train all in turn, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="MOSI in MMSA's layout")
    add("--threshold", type=float, default=0.96, help="validation MAE")
    add("--seeds", type=int, default=2)
    add("--systems", nargs="+", choices=[*OURS, *MMSAS], default=[*OURS, *MMSAS])
    add("--out", type=Path, default=Path("docs/_static"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[Watch]] = {name: [] for name in args.systems}
    for seed in range(args.seeds):
        for name, own in runs.items():
            own.append(Watch(args.threshold))
            hidden = contextlib.redirect_stdout(io.StringIO())
            with contextlib.suppress(ReachedError), hidden:
                if name in OURS:
                    train_ours(OURS[name], args.data, seed, own[-1])
                else:
                    train_mmsas(MMSAS[name], args.data, seed, own[-1])
            print(name, seed, f"{own[-1].seconds:.1f} s", [round(x, 3) for x in own[-1].curve])
    write(args, runs)


def write(args: argparse.Namespace, runs: dict[str, list[Watch]]) -> None:
    """Print the table, and write it."""
    rows = []
    for name, own in runs.items():
        seconds = statistics.mean(watch.seconds for watch in own)
        first = rows[0]["seconds"] if rows else seconds
        rows.append(
            {
                "system": name,
                "seconds": round(seconds, 1),
                "times_the_first": round(seconds / first, 2),
                "epochs": statistics.mean(len(watch.curve) for watch in own),
                "best_valid_mae": round(min(min(watch.curve) for watch in own), 3),
                "reached": f"{sum(watch.seconds == watch.seconds for watch in own)} of {len(own)}",
                "threshold": args.threshold,
                "torch": torch.__version__,
            }
        )
        print("{system:12} {seconds:8} s {times_the_first:6} x  {reached}".format(**rows[-1]))
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "time_to_accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
