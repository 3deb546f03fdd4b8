"""Kill training runs at random moments, resume them, and compare with a run left alone.

Each run is sent SIGKILL at its own moment, spread over the time that the run left alone took; every
second one is killed while it writes a file after that moment, and every third resumed run is killed
once more. Then --resume finishes it, and every file of the run folder must equal that of the run
left alone, byte for byte. From the root of the repository, on data or without (synthetic):

    python examples/benchmarks/resume.py --data mosi.pkl
    python examples/benchmarks/resume.py --data mosi.pkl --processes 2 --kills 1

Options that are not its own are those of examples/train.py. Exits with 1 where a file differs.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

TRAIN = Path(__file__).parents[1] / "train.py"
FILES = ("run.json", "metrics.json", "config.json", "model.safetensors", "README.md")


def start(folder: Path, options: list[str], processes: int) -> subprocess.Popen[bytes]:
    """Start a run, or go on with the one in the folder."""
    command = [sys.executable]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", *torchrun]
    command += [str(TRAIN), "--out", str(folder), "--resume", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill(process: subprocess.Popen[bytes], folder: Path, after: float, writing: bool) -> bool:
    """Kill a run after some seconds, perhaps while it writes; return if there was a run to kill."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        while writing and process.poll() is None and not list(folder.glob("*.tmp")):
            time.sleep(0.0005)
        if process.poll() is None:
            launcher = psutil.Process(process.pid)
            for part in [launcher, *launcher.children(recursive=True)]:
                part.kill()
    return process.wait() != 0


def content(path: Path) -> bytes | None:
    """Read a file, if it is there."""
    return path.read_bytes() if path.exists() else None


def describe(folder: Path) -> str:
    """Say what a kill left: epochs in the checkpoint, and files that were being written."""
    checkpoint = folder / "checkpoint.pt"
    epochs = "no checkpoint"
    if checkpoint.exists():
        epochs = f"{len(torch.load(checkpoint, weights_only=True)['history'])} epochs"
    return ", ".join([epochs, *(path.name.split(".")[0] + ".tmp" for path in folder.glob("*.tmp"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=10, help="runs to kill")
    parser.add_argument("--random", type=int, default=0, help="seed of the moments")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", default="100")
    args, options = parser.parse_known_args()
    options += ["--steps", args.steps]
    rng = random.Random(args.random)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name) / "alone"
        started = time.monotonic()
        if start(alone, options, args.processes).wait() != 0:
            raise SystemExit("The run left alone failed.")
        seconds = time.monotonic() - started
        print(f"left alone: {seconds:.1f} s, options {' '.join(options)}\n")
        print("| run | killed after | what was left | equal files |\n|---|---|---|---|", flush=True)
        for number in range(args.kills):
            folder = Path(name) / str(number)
            writing = number % 2 == 1
            after = (number + rng.random()) / args.kills * seconds
            while not kill(start(folder, options, args.processes), folder, after, writing):
                shutil.rmtree(folder)  # it was done before the moment came
                after *= 0.9
            moments, left = [f"{after:.1f} s"], [describe(folder)]
            again = rng.uniform(0.2, 0.8) * seconds
            if number % 3 == 2 and kill(
                start(folder, options, args.processes), folder, again, writing=False
            ):
                moments.append(f"{again:.1f} s")
                left.append(describe(folder))
            if start(folder, options, args.processes).wait() != 0:
                raise SystemExit("A resumed run failed.")
            # Nothing else may stay behind, such as the temporary file of a kill.
            here = sorted({*FILES, *(path.name for path in folder.iterdir())} - {".lock"})
            equal = [file for file in here if content(folder / file) == content(alone / file)]
            failed |= len(equal) < len(here)
            print(
                f"| {number} | {' and '.join(moments)} | {'; '.join(left)} "
                f"| {len(equal)} of {len(here)} |",
                flush=True,
            )
    raise SystemExit("A resumed run differs." if failed else 0)


if __name__ == "__main__":
    main()
