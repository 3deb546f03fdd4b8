"""The command line: ``python -m tdmer predict``."""

import argparse
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdmer.data import open_store
from tdmer.prediction import Prediction, Predictor


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and say in one line what is wrong with a file or an option."""
    parser = argparse.ArgumentParser("python -m tdmer")
    commands = parser.add_subparsers(title="commands", required=True)
    about = "predict samples by a model that was saved with its task"
    command = commands.add_parser("predict", help=about, description=about)
    add = command.add_argument
    add("--model", required=True, help="a folder, or user/name on the Hub")
    add("--recording", nargs="+", metavar="FILE", help="sound or video; one sample each")
    add("--text", "--transcript", nargs="+", help="what is said, one for each sample")
    add("--audio", nargs="+", metavar="FILE", help="recordings of which only the sound is taken")
    add("--video", nargs="+", metavar="FILE", help="recordings of which only the face is taken")
    kinds = "one .npz per sample, with an array (t, f) or (f,) per modality; or a store"
    add("--features", type=Path, nargs="+", metavar="FILE", help=kinds)
    add("--split", default="test", help="of a store (default: %(default)s)")
    add("--models", help="folder with the models that make the features, where they have moved")
    add("--json", action="store_true", help="print a list in place of tables")
    args = parser.parse_args(arguments)
    given = {name: getattr(args, name) for name in ("recording", "text", "audio", "video")}
    raw = {name: values for name, values in given.items() if values}
    if bool(raw) == bool(args.features):
        command.error("give --features, or --recording, --text, --audio and --video")
    if len({len(values) for values in raw.values()}) > 1:
        command.error(f"give as many values of each of {', '.join(f'--{name}' for name in raw)}")
    try:
        predictor = Predictor.from_pretrained(args.model, models=args.models)
        if args.features:
            found = predict(predictor, args.features, args.split)
        else:
            samples = [dict(zip(raw, row, strict=True)) for row in zip(*raw.values(), strict=True)]
            files = args.recording or args.audio or args.video
            found = predictor(samples, ids=files and [Path(file).stem for file in files])
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise SystemExit(f"tdmer predict: {' '.join(str(error).split())}") from None
    if args.json:
        print(json.dumps([prediction.to_dict() for prediction in found], indent=2))
    else:
        print("\n\n".join(map(str, found)))


def predict(predictor: Predictor, paths: Sequence[Path], split: str) -> list[Prediction]:
    """Predict what the files of features hold."""
    if len(paths) > 1 or not paths[0].is_dir():
        return predictor([read_npz(path) for path in paths], ids=[path.stem for path in paths])
    splits = open_store(paths[0])
    if split not in splits:
        raise ValueError(f"--split must be one of {list(splits)}, got {split!r}")
    return predictor(splits[split])


def read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a file by name; nothing in it can run code."""
    try:
        # Opened here, since NumPy leaves a damaged one open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (AttributeError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        rule = "be a whole .npz with an array of numbers per modality, as numpy.savez writes it"
        raise ValueError(f"{path} must {rule}") from None


if __name__ == "__main__":
    main()
