"""From a folder of recordings to a store."""

import csv
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from tdmer._checks import check_count
from tdmer.data.dataset import MultimodalDataset
from tdmer.data.store import check_new_store, write_store
from tdmer.features.extractor import Extractor
from tdmer.features.recording import Recording

_ENDINGS = {
    *(".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".flv"),
    *(".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac"),
}
_KILLED = (
    "its process was killed, as for want of memory; if that is so of all recordings, "
    'call extract_folder under `if __name__ == "__main__":`, or with processes=1'
)


class _Job(NamedTuple):
    id: str
    path: Path
    transcript: str | None
    part: Path


class _Row(NamedTuple):
    label: str
    split: str
    transcript: str | None


def extract_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    extractor: Extractor,
    labels: str | os.PathLike[str] | None = None,
    *,
    processes: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Make a store of all recordings of a folder and its subfolders.

    Each recording goes through the extractor, in processes of their own. Its result is kept in a
    file in ``<out>.parts`` until all are done: an interrupted run goes on where it stopped, and a
    recording whose file, transcript or options have changed is done anew. What cannot be read is
    reported and left out. The store, which :func:`~tdmer.data.open_store` opens, has beside its
    splits ``recordings.json``: how the features were made, what each column is, and of every
    recording the words and what it lacks.

    Args:
        folder: where the recordings are; one is named by its path therein without its ending.
        out: the store to write, a folder that does not exist.
        extractor: what makes the features. Without ``speech``, a recording without a transcript
            lacks its text.
        labels: a CSV file with the columns ``id`` (as above, with or without the ending) and
            ``label``: numbers, or names, which become classes in alphabetical order; nothing where
            it is unknown. If it has them, also ``split`` (without it all are in ``"all"``) and
            ``transcript``. None: all recordings, without labels.
        processes: how many work at a time; None: one for each core; 1: this one alone. Each loads
            the models for itself and runs them on one thread. With several, the parts must be
            possible to pickle.
        progress: whether to show how far it is, and to print what failed.

    Returns:
        Recordings that are not in the store by name, each with the reason.

    Raises:
        FileExistsError: the store exists.
        FileNotFoundError: there is no such folder or CSV file.
        ImportError: a package that a part needs is not installed.
        ValueError: no recording could be read, two have one name, or the CSV file is of another
            kind.

    Example:
        >>> from tdmer.features import LogMel
        >>> extractor = Extractor(audio=LogMel())
        >>> failed = extract_folder("clips", "clips.store", extractor, "labels.csv")
        ... # doctest: +SKIP
    """
    check_new_store(out)
    processes = (os.cpu_count() or 1) if processes is None else processes
    check_count("processes", processes)
    if all(part is None for part in (extractor.text, extractor.audio, extractor.video)):
        raise ValueError("extractor must make text, audio or video, got one that only hears words")
    found = _recordings(Path(folder))
    rows = dict.fromkeys(found, _Row("", "all", None)) if labels is None else _rows(Path(labels))
    failed = {name: "no recording of this name" for name in rows if name not in found}
    failed |= {name: "no row in the labels" for name in found if name not in rows}
    parts, jobs = Path(f"{os.fspath(out)}.parts"), []
    for name in rows:
        if name in found:
            transcript = rows[name].transcript or (None if extractor.speech else "")
            stamp = _stamp(extractor, found[name], transcript)
            jobs.append(_Job(name, found[name], transcript, parts / f"{name}.{stamp}.npz"))

    waiting = [job for job in jobs if not job.part.exists()]
    done = _in_processes(extractor, waiting, min(processes, len(waiting)))
    for job, error in tqdm(done, "Recordings", len(waiting), disable=not progress):
        if error is not None:
            failed[job.id] = error
            if progress:
                tqdm.write(f"{job.id}: {error}", sys.stderr)
    jobs = [job for job in jobs if job.id not in failed]
    if not jobs:
        raise ValueError(
            f"{os.fspath(folder)} must hold a recording that can be read, got {failed}"
        )
    facts = {}
    for job in jobs:
        facts[job.id] = recording = Recording.load(job.part)
        shapes = {
            name: np.broadcast_to(np.float32(0), x.shape) for name, x in recording.inputs.items()
        }
        recording.inputs.update(shapes)  # The features themselves stay in their files.
    write_store(out, _splits(jobs, rows, facts))
    about = {
        name: {"words": r.words, "notes": r.notes, "frames": r.frames} for name, r in facts.items()
    }
    columns = next(iter(facts.values())).columns
    content = {"extractor": extractor.config, "columns": columns}
    content |= {"recordings": about, "failed": failed}
    (Path(out) / "recordings.json").write_text(json.dumps(content))
    if not failed:
        shutil.rmtree(parts, ignore_errors=True)
    return failed


@dataclass(frozen=True)
class _Saved:
    """The sequences of one modality, each in the file of its recording."""

    modality: str
    parts: list[Path]

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return Recording.load(self.parts[index]).inputs[self.modality]


def _splits(
    jobs: list[_Job], rows: dict[str, _Row], facts: dict[str, Recording]
) -> dict[str, MultimodalDataset]:
    every = {row.label for row in rows.values()} - {""}
    classes = None if all(map(_is_number, every)) else sorted(every)
    whole = bool(every) and all(re.fullmatch(r"[+-]?\d+", label) for label in every)

    def target(label: str) -> float:
        if classes is not None:
            return classes.index(label) if label else -100
        return (int(label) if whole else float(label)) if label else (-100 if whole else np.nan)

    splits: dict[str, list[_Job]] = {}
    for job in jobs:
        splits.setdefault(rows[job.id].split, []).append(job)
    datasets = {}
    for split, members in splits.items():
        names = [job.id for job in members]
        columns = {
            name: [facts[job.id].inputs[name] for job in members] for name in facts[names[0]].inputs
        }
        labels = [target(rows[name].label) for name in names]
        data = MultimodalDataset._of_views(columns, labels, names)
        data._steps = {name: _Saved(name, [job.part for job in members]) for name in columns}
        data.classes = classes
        datasets[split] = data
    return datasets


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _recordings(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder of recordings")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _ENDINGS and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"recordings must differ in more than their ending, got {name!r}")
            found[name] = path
    return found


def _rows(path: Path) -> dict[str, _Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"id", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must have columns id and label, got {reader.fieldnames}")
        rows: dict[str, _Row] = {}
        for line in reader:
            name = line["id"].strip()
            if Path(name).suffix.lower() in _ENDINGS:
                name = Path(name).with_suffix("").as_posix()
            if name in rows:
                raise ValueError(f"{path} must name each recording once, got {name!r} twice")
            split = (line.get("split") or "all").strip()
            rows[name] = _Row((line["label"] or "").strip(), split, line.get("transcript"))
    return rows


def _stamp(extractor: Extractor, path: Path, transcript: str | None) -> str:
    """Return a digest of what the result depends on."""
    facts, options = path.stat(), re.sub(r" at 0x[0-9a-f]+", "", repr(extractor))
    seen = repr((facts.st_size, facts.st_mtime_ns, transcript, options))
    return hashlib.sha256(seen.encode()).hexdigest()[:12]


def _attempt(extractor: Extractor, job: _Job) -> str | None:
    """Extract and save one recording; return what went wrong."""
    try:
        recording = extractor(job.path, job.transcript)
        job.part.parent.mkdir(parents=True, exist_ok=True)
        recording.save(job.part)
    except ImportError:  # It would be so for all.
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


_extractor: Extractor


def _begin(extractor: Extractor) -> None:
    """Prepare a process: the models travel once, not with every recording."""
    global _extractor
    _extractor = extractor
    torch.set_num_threads(1)


def _attempt_there(job: _Job) -> str | None:
    return _attempt(_extractor, job)


def _in_processes(
    extractor: Extractor, jobs: list[_Job], processes: int
) -> Iterator[tuple[_Job, str | None]]:
    """Yield every job when it is done, and what went wrong.

    Where a process dies, all that ran at the time are tried again, one at a time, so that only that
    which kills its process is lost.
    """
    if processes <= 1:
        yield from ((job, _attempt(extractor, job)) for job in jobs)
        return
    waiting, suspects = jobs[::-1], list[_Job]()
    while waiting or suspects:
        alone = bool(suspects)
        source, size = (suspects, 1) if alone else (waiting, processes)
        running: dict[Future[str | None], _Job] = {}
        context = get_context("spawn")
        with ProcessPoolExecutor(size, context, initializer=_begin, initargs=(extractor,)) as pool:
            try:
                while source or running:
                    while source and len(running) < size:
                        running[pool.submit(_attempt_there, source[-1])] = source[-1]
                        source.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        error = future.result()
                        yield running.pop(future), error
            except BrokenProcessPool:
                if alone:
                    yield from ((job, _KILLED) for job in running.values())
                else:
                    suspects += running.values()
