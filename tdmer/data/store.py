"""Data sets in files that are read sample by sample, for what does not fit into memory."""

import errno
import json
import math
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tdmer.data.dataset import Layout, MultimodalDataset, Steps, as_float32, lay_out

_FORMAT = {"format": "tdmer store", "version": 1}
_INDEX = "store.json"
# Their names in a safetensors header.
_DTYPES = {np.dtype("float32"): "F32", np.dtype("int64"): "I64", np.dtype("uint8"): "U8"}


class Columns(NamedTuple):
    """One split as a reader found it, before anything is copied.

    Attributes:
        inputs: modality name → one ``(t_i, f)`` array per sample, such as views of a padded array.
        labels: ``(n,)`` or ``(n, k)``.
        ids: one name per sample.
    """

    inputs: Mapping[str, Sequence[NDArray[Any] | Tensor]]
    labels: Sequence[Any] | NDArray[Any] | Tensor
    ids: Sequence[str]


def build(
    splits: Mapping[str, Columns], store: str | os.PathLike[str] | None = None
) -> dict[str, MultimodalDataset]:
    """Make data sets of what a reader found, in memory or in a store.

    Args:
        splits: split name → its columns.
        store: a new folder to stream the splits into, which is then opened; None: in memory.

    Returns:
        Split name → data set.

    Raises:
        TypeError, ValueError: as :class:`MultimodalDataset`, after the name of the split.
        OSError, ImportError: as :func:`write_store`.
    """
    if store is not None:
        check_new_store(store)
    datasets, sources = {}, {}
    for split, columns in splits.items():
        try:
            if store is None:
                datasets[split] = MultimodalDataset(*columns)
            else:
                sources[split] = lay_out(*columns)
        except TypeError as error:
            raise TypeError(f"split {split!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"split {split!r}: {error}") from error
    if store is None:
        return datasets
    _write(Path(store), sources)
    return open_store(store)


def write_store(path: str | os.PathLike[str], datasets: Mapping[str, MultimodalDataset]) -> None:
    """Write data sets into a new folder, from which :func:`open_store` reads them.

    The folder holds ``store.json``, which lists the splits, and ``<split>.safetensors`` for each:
    per modality the steps of all samples, ``<modality>/steps`` of shape ``(steps, f)``, and where
    each sample begins and the last ends, ``<modality>/offsets``; ``labels``; and ``ids`` as bytes
    of JSON. It appears under its name when it is complete and on the disk: an interrupted run
    leaves nothing that opens. Steps pass through memory one sample at a time.

    Args:
        path: the folder, which must not exist.
        datasets: split name → data set, in memory or from another store.

    Raises:
        FileExistsError: the path exists.
        ImportError: safetensors is not installed: ``pip install "tdmer[data]"``.
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
    sources = {}
    for split, data in datasets.items():
        layout = Layout(data.labels, data.ids, data.dims, data._offsets, data.overflows)
        sources[split] = layout, {name: _sequences(data, name) for name in data.dims}
    _write(Path(path), sources)


def open_store(path: str | os.PathLike[str]) -> dict[str, MultimodalDataset]:
    """Open what :func:`write_store`, or a reader's ``store``, has written.

    Labels, ids and lengths are read; steps stay in the files, and every sample is read when it is
    asked for, into memory of its own. Resident memory stays at one batch, where a memory map would
    count every page that was ever touched, and a file that is cut short is an error, where a map
    would end the process. It takes ``os.preadv``: Linux, macOS, BSD. The data sets can be pickled,
    such as for the workers of a data loader: that carries labels, ids, offsets and the path.

    Args:
        path: the folder.

    Returns:
        Split name → data set, in the order of writing. The samples are equal, bit by bit, to those
        that were written.

    Raises:
        FileNotFoundError: there is no store at the path.
        ImportError: safetensors is not installed: ``pip install "tdmer[data]"``.
        ValueError: a file is damaged, of another format or version, or missing; when a sample is
            read, also: the file was changed or cut since.

    Example:
        >>> import tempfile
        >>> data = MultimodalDataset({"audio": torch.ones(3, 2, 4)}, [0.5, -1.0, 2.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_store(f"{folder}/store", {"valid": data})
        ...     open_store(f"{folder}/store")["valid"].lengths
        {'audio': tensor([2, 2, 2])}
    """
    safe_open = _safetensors()
    folder = Path(path).absolute()
    index = folder / _INDEX
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} must be a folder with {_INDEX}, as write_store makes it, got "
            + ("another folder" if folder.is_dir() else "a file" if folder.exists() else "nothing")
        )
    try:
        content = json.loads(index.read_bytes())
        splits = content.pop("splits")
        if content != _FORMAT:
            raise ValueError(f"format and version {content}, not {_FORMAT}")
        _check_splits(splits)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(index, repr(error)) from error
    return {split: _open_split(folder / f"{split}.safetensors", safe_open) for split in splits}


def check_new_store(path: str | os.PathLike[str]) -> None:
    """Raise unless a store can be written at the path: before hours of work, not after."""
    _safetensors()
    if os.path.lexists(path):
        raise FileExistsError(
            f"store must be a new folder, got {os.fspath(path)!r}, which exists: "
            "open_store reads it; else remove it or choose another"
        )


class _File:
    """A file that any number of processes read at any place; it is pickled as its path."""

    def __init__(self, path: Path, identity: tuple[int, int] | None = None) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.identity = self._identity() if identity is None else identity

    def __reduce__(self) -> tuple[Any, ...]:
        return _File, (self.path, self.identity)

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def read(self, values: NDArray[np.float32], place: int) -> None:
        """Fill an array with the bytes from a place on."""
        if self._identity() != self.identity:
            raise ValueError(
                f"{self.path} must stay as it was opened, but it changed: open it anew"
            )
        rest = values.reshape(-1).view(np.uint8).data
        while rest:
            count = os.preadv(self.descriptor, [rest], place)
            if count == 0:
                raise _damaged(self.path, f"an end before byte {place + len(rest)}")
            rest, place = rest[count:], place + count


@dataclass(frozen=True)
class _StoredSteps:
    """All steps of one modality, in a file from a place on."""

    file: _File
    place: int
    width: int

    def __getitem__(self, steps: slice) -> Float[Tensor, "t f"]:
        values = torch.empty(steps.stop - steps.start, self.width, dtype=torch.float32)
        if len(values):
            self.file.read(values.numpy(), self.place + steps.start * self.width * values.itemsize)
        return values


def _open_split(path: Path, safe_open: Callable[..., Any]) -> MultimodalDataset:
    try:
        file = _File(path)
    except FileNotFoundError as error:
        raise _damaged(path, "no such file") from error
    try:
        # Refuses a header that is not one, or that does not fit the size of the file.
        with safe_open(path, framework="pt") as content:
            overflows = json.loads(content.metadata()["overflows"])
            # Copies: these tensors are memory maps.
            labels = content.get_tensor("labels").clone()
            offsets = {name: content.get_tensor(f"{name}/offsets").clone() for name in overflows}
            ids = json.loads(content.get_tensor("ids").numpy().tobytes())
        with path.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
        entries = {name: header[f"{name}/steps"] for name in overflows}
        layout = Layout(
            labels, ids, {n: e["shape"][-1] for n, e in entries.items()}, offsets, overflows
        )
        _check_layout(layout, {name: (e["dtype"], e["shape"]) for name, e in entries.items()})
    except Exception as error:
        # Whatever a damaged file makes of these lines, it is the file that is to be named.
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    values: dict[str, Steps] = {
        name: _StoredSteps(file, 8 + size + entry["data_offsets"][0], layout.dims[name])
        for name, entry in entries.items()
    }
    return MultimodalDataset._of(layout, values)


def _check_layout(layout: Layout, steps: Mapping[str, tuple[str, list[int]]]) -> None:
    """Raise unless the parts of a file fit together."""
    count = len(layout.labels)
    if (
        layout.labels.dtype not in (torch.float32, torch.int64)
        or layout.labels.ndim not in (1, 2)
        or count == 0
    ):
        raise ValueError(f"labels of {layout.labels.dtype}, shape {tuple(layout.labels.shape)}")
    ids = layout.ids
    if not isinstance(ids, list) or len(ids) != count or not all(isinstance(i, str) for i in ids):
        raise ValueError(f"other than {count} ids")
    if not steps or not all(isinstance(entry, int) for entry in layout.overflows.values()):
        raise ValueError(f"overflows {layout.overflows}")
    for name, (dtype, shape) in steps.items():
        offsets = layout.offsets[name]
        if dtype != "F32" or len(shape) != 2 or shape[1] < 1:
            raise ValueError(f"steps of {name!r} of {dtype}, shape {shape}")
        if (
            offsets.dtype != torch.int64
            or offsets.shape != (count + 1,)
            or offsets[0] != 0
            or offsets[-1] != shape[0]
            or (offsets.diff() < 0).any()
        ):
            raise ValueError(f"offsets of {name!r} that do not cut {shape[0]} steps in {count}")


def _check_splits(splits: Sequence[str]) -> None:
    if not splits or not isinstance(splits, list):
        raise ValueError(f"datasets must hold at least one split, got {splits}")
    for split in splits:
        if not isinstance(split, str) or split in ("", ".", "..") or set(split) & set("/\\\0"):
            raise ValueError(f"split names must be names of files, got {split!r}")


_Source = tuple[Layout, Mapping[str, Iterable[NDArray[Any] | Tensor]]]


def _write(path: Path, sources: Mapping[str, _Source]) -> None:
    _check_splits(list(sources))
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir()
        for split, (layout, sequences) in sources.items():
            _write_split(partial / f"{split}.safetensors", layout, sequences)
        index = json.dumps(_FORMAT | {"splits": list(sources)}).encode()
        _write_file(partial / _INDEX, [index])
        _sync(partial)
        partial.rename(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(_size(layout) for layout, _ in sources.values())
            raise OSError(
                error.errno,
                f"{path} needs {size:,} bytes, and the disk is full (nothing was kept): "
                "make room or choose another path",
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _size(layout: Layout) -> int:
    steps = sum(int(layout.offsets[name][-1]) * width for name, width in layout.dims.items())
    return 4 * steps


def _write_split(
    path: Path, layout: Layout, sequences: Mapping[str, Iterable[NDArray[Any] | Tensor]]
) -> None:
    """Write one safetensors file, https://github.com/huggingface/safetensors#format."""
    ids = np.frombuffer(json.dumps(layout.ids).encode(), np.uint8)
    # The longest numbers first, so that all are aligned.
    small = {f"{name}/offsets": offsets.numpy() for name, offsets in layout.offsets.items()}
    small["labels"] = layout.labels.numpy()
    shapes = {name: (x.dtype, x.shape) for name, x in small.items()}
    for name, width in layout.dims.items():
        shapes[f"{name}/steps"] = np.dtype(np.float32), (int(layout.offsets[name][-1]), width)
    shapes["ids"] = ids.dtype, ids.shape
    header: dict[str, Any] = {"__metadata__": {"overflows": json.dumps(layout.overflows)}}
    place = 0
    for name, (dtype, shape) in shapes.items():
        end = place + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": (place, end)}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    steps = (as_float32(x) for name in layout.dims for x in sequences[name])
    _write_file(path, chain([len(text).to_bytes(8, "little"), text], small.values(), steps, [ids]))


def _write_file(path: Path, pieces: Iterable[bytes | NDArray[Any]]) -> None:
    with path.open("xb", buffering=1 << 20) as file:
        for piece in pieces:
            file.write(piece if isinstance(piece, bytes) else np.ascontiguousarray(piece).data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sequences(data: MultimodalDataset, name: str) -> Iterator[Tensor]:
    for start, stop in pairwise(data._offsets[name].tolist()):
        yield data._values[name][start:stop]


def _safetensors() -> Callable[..., Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError('a store needs safetensors: pip install "tdmer[data]"') from error
    return safe_open


def _damaged(path: Path, got: str) -> ValueError:
    return ValueError(f"{path} must be a whole file of a store, got {got}: write the store again")
