"""Data sets in files that are read sample by sample, for what does not fit into memory."""

import json
import math
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdmer.data.dataset import MultimodalDataset, as_float32

_FORMAT = {"format": "tdmer store", "version": 2}
_INDEX = "store.json"
# Their names in a safetensors header.
_NAMES = {"<f4": "F32", "<i8": "I64", "<u4": "U32", "|u1": "U8"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_store(path: str | os.PathLike[str], datasets: Mapping[str, MultimodalDataset]) -> None:
    """Write data sets into a new folder, from which :func:`open_store` reads them.

    The folder holds ``store.json``, which lists the splits, and ``<split>.safetensors`` for each:
    per modality where each sample begins and the last ends, ``<modality>/offsets``, a CRC-32 of
    each sample, ``<modality>/checksums``, and the steps of all samples, ``<modality>/steps`` of
    shape ``(steps, f)``; ``labels``; and ``ids`` as bytes of JSON. All but the steps stands in
    front of them, and its size and CRC-32 in ``store.json``. The folder appears under its name when
    it is complete: an interrupted run leaves nothing that opens. Steps pass through memory one
    sample at a time.

    Args:
        path: the folder, which must not exist.
        datasets: split name → data set, in memory or from another store.

    Raises:
        FileExistsError: the path exists.
        OSError: the folder cannot be written, such as on a full disk.
        ValueError: no split, or its name cannot be that of a file.

    Example:
        >>> import tempfile
        >>> data = MultimodalDataset({"audio": torch.ones(3, 2, 4)}, [0.5, -1.0, 2.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_store(f"{folder}/store", {"train": data})
        ...     train = open_store(f"{folder}/store")["train"]
        ...     len(train), train.dims, train[2].label
        (3, {'audio': 4}, tensor(2.))
    """
    check_new_store(path)
    _check_splits(datasets)
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir()
        splits = {
            split: _write_split(partial / f"{split}.safetensors", data)
            for split, data in datasets.items()
        }
        (partial / _INDEX).write_text(json.dumps(_FORMAT | {"splits": splits}))
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_store(path: str | os.PathLike[str]) -> dict[str, MultimodalDataset]:
    """Open what :func:`write_store`, or a reader's ``store``, has written.

    Labels, ids and lengths are read and checked against their checksum; steps stay in the files.
    Every sample is read when it is asked for, into memory of its own, and checked against its own
    checksum. So opening takes the same time for any number of steps, no damage reaches a model
    unnoticed, and :func:`describe`, which reads every sample, is a check of the whole store.
    Checksums find accidents, not forgeries. Resident memory stays at one batch, where a memory map
    would count every page that was ever touched. The data sets can be pickled, such as for the
    workers of a data loader: that carries labels, ids, offsets, checksums and the path.

    Args:
        path: the folder.

    Returns:
        Split name → data set, in the order of writing. The samples are equal, bit by bit, to those
        that were written.

    Raises:
        FileNotFoundError: there is no store at the path.
        ValueError: a file is damaged, of another format or version, or missing; when a sample is
            read, also: its steps are damaged, or the file was changed or cut since.

    Example:
        >>> import tempfile
        >>> data = MultimodalDataset({"audio": torch.ones(3, 2, 4)}, [0.5, -1.0, 2.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_store(f"{folder}/store", {"valid": data})
        ...     open_store(f"{folder}/store")["valid"].lengths
        {'audio': tensor([2, 2, 2])}
    """
    folder = Path(path).absolute()
    index = folder / _INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{folder} must be a folder with {_INDEX}, as write_store makes it")
    file, datasets = index, {}
    # Whatever a damaged file makes of these lines, it is the file that is to be named.
    try:
        content = json.loads(index.read_bytes())
        splits = content.pop("splits")
        if content != _FORMAT:
            raise ValueError(f"format and version {content}, not {_FORMAT}")
        _check_splits(splits)
        for split, head in splits.items():
            file = folder / f"{split}.safetensors"
            datasets[split] = _open_split(file, *head)
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{file} must be a whole file of a store, got {got}: write the store again"
        ) from error
    return datasets


def check_new_store(path: str | os.PathLike[str]) -> None:
    """Raise unless a store can be written at the path: before hours of work, not after."""
    if os.path.lexists(path):
        raise FileExistsError(
            f"store must be a new folder, got {os.fspath(path)!r}, which exists: "
            "open_store reads it; else remove it or choose another"
        )


@dataclass(frozen=True)
class _Stored:
    """The sequences of one modality, in a file from a place on."""

    path: Path
    place: int
    width: int
    offsets: Int[Tensor, " bounds"]
    checksums: list[int]

    def __getitem__(self, index: int) -> Float[Tensor, "t f"]:
        start, stop = (self.width * self.offsets[index : index + 2]).tolist()
        values = np.fromfile(self.path, "<f4", stop - start, offset=self.place + 4 * start)
        if zlib.crc32(values.data) != self.checksums[index]:
            raise ValueError(
                f"{self.path} must hold sample {index} as it was written, got other steps: it was "
                "damaged, or changed since it was opened; open it anew, or write the store again"
            )
        return torch.from_numpy(values.reshape(-1, self.width))


def _open_split(path: Path, size: int, checksum: int) -> MultimodalDataset:
    with path.open("rb") as file:
        head = file.read(size)
    begin = 8 + int.from_bytes(head[:8], "little")
    header = json.loads(head[8:begin])
    end = begin + max(entry.get("data_offsets", [0])[-1] for entry in header.values())
    if zlib.crc32(head) != checksum or path.stat().st_size != end:
        raise ValueError("another size, or other labels, ids or lengths than were written")
    data = MultimodalDataset.__new__(MultimodalDataset)
    metadata = header.pop("__metadata__")
    data.overflows = json.loads(metadata["overflows"])
    data.classes = json.loads(metadata.get("classes", "null"))
    parts = {}
    for name, entry in header.items():
        place, count = begin + entry["data_offsets"][0], math.prod(entry["shape"])
        if not name.endswith("/steps"):
            flat = np.frombuffer(head, _DTYPES[entry["dtype"]], count, place)
            parts[name] = flat.reshape(entry["shape"])
    data.labels, data.ids = torch.tensor(parts["labels"]), json.loads(parts["ids"].tobytes())
    data.dims, data._offsets, steps = {}, {}, {}
    for name in data.overflows:
        entry, offsets = header.pop(f"{name}/steps"), torch.tensor(parts[f"{name}/offsets"])
        count, data.dims[name] = entry["shape"]
        # Of differences an overflow could hide.
        if offsets[0] != 0 or offsets[-1] != count or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"offsets of {name!r} that do not cut {count} steps")
        data._offsets[name], place = offsets, begin + entry["data_offsets"][0]
        checksums = parts[f"{name}/checksums"].tolist()
        steps[name] = _Stored(path, place, data.dims[name], offsets, checksums)
    data._steps = steps
    counts = {len(data.ids), len(data.labels), *map(len, data.lengths.values())}
    if len(counts) != 1 or any(name.endswith("/steps") for name in header):
        raise ValueError("labels, ids, lengths and modalities that do not belong together")
    return data


def _write_split(path: Path, data: MultimodalDataset) -> tuple[int, int]:
    """Write one file, https://github.com/huggingface/safetensors#format.

    Returns:
        The size of all that stands before the steps, and its checksum.
    """
    parts = {f"{name}/offsets": offsets.numpy() for name, offsets in data._offsets.items()}
    parts["labels"] = data.labels.numpy()
    for name in data.dims:
        parts[f"{name}/checksums"] = np.zeros(len(data), np.uint32)
    ids = json.dumps(data.ids).encode()
    # Blanks, here and below, so that all is aligned.
    parts["ids"] = np.frombuffer(ids + b" " * (-len(ids) % 4), np.uint8)
    shapes = {name: (x.dtype.str, x.shape) for name, x in parts.items()}
    for name, width in data.dims.items():
        shapes[f"{name}/steps"] = "<f4", (int(data._offsets[name][-1]), width)
    overflows = {name: data.overflows.get(name, 0) for name in data.dims}
    metadata = {"overflows": json.dumps(overflows)}
    if data.classes is not None:
        metadata["classes"] = json.dumps(data.classes)
    header: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, (dtype, shape) in shapes.items():
        end = place + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (place, end)}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = 8 + len(text) + sum(x.nbytes for x in parts.values())
    with path.open("xb", buffering=1 << 20) as file:
        file.seek(size)
        for name, sequences in data._steps.items():
            for index in range(len(data)):
                values = as_float32(np.asarray(sequences[index])).tobytes()
                parts[f"{name}/checksums"][index] = zlib.crc32(values)
                file.write(values)
        pieces = [len(text).to_bytes(8, "little"), text, *(x.tobytes() for x in parts.values())]
        head = b"".join(pieces)
        file.seek(0)
        file.write(head)
    return size, zlib.crc32(head)


def _check_splits(splits: Mapping[str, Any]) -> None:
    if not splits or not isinstance(splits, Mapping):
        raise ValueError(f"datasets must hold at least one split, got {splits}")
    for split in splits:
        # So many take, with the ending, at most the 255 bytes of most file systems.
        if not isinstance(split, str) or not re.fullmatch(r"(?!\.{1,2}$)[^/\\\0]{1,60}", split):
            rule = "names of files, of at most 60 characters"
            raise ValueError(f"split names must be {rule}, got {split!r:.100}")
