import errno
import json
import os
import pickle
import shutil
import sys
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

from tdmer.data import MultimodalDataset, collate, describe, load_mmsa, open_store, write_store
from tdmer.data.readers._columns import Columns
from tdmer.data.readers._columns import build as build_columns

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "mosi.pkl"
WIDTHS = {"text": 4, "audio": 2}


def build(splits, store=None):
    return build_columns("file", splits, None, store)


def columns(lengths=((3, 2), (0, 5), (1, 0)), dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    inputs = {
        name: [random.normal(size=(steps[place], width)).astype(dtype) for steps in lengths]
        for place, (name, width) in enumerate(WIDTHS.items())
    }
    ids = [f"{seed}/{number}" for number in range(len(lengths))]
    return Columns(f"split {seed}", inputs, random.normal(size=len(lengths)), ids)


def dataset(source):
    return MultimodalDataset(*source[1:])


def make_store(folder):
    """Write two splits of which `valid` is the smaller; return them as they are in memory."""
    splits = {"valid": columns(), "train": columns([(t, 9 - t) for t in range(10)], seed=1)}
    build(splits, folder)
    return build(splits)


def bits(x):
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def assert_equal(got, expected):
    assert type(got) is type(expected) is MultimodalDataset
    assert got.dims == expected.dims
    assert list(got.dims) == list(expected.dims)
    assert got.ids == expected.ids
    assert got.overflows == expected.overflows
    assert got.labels.dtype == expected.labels.dtype
    assert torch.equal(bits(got.labels), bits(expected.labels))
    assert len(got) == len(expected)
    for name, lengths in expected.lengths.items():
        assert torch.equal(got.lengths[name], lengths)
    for one, other in zip(got, expected, strict=True):
        assert one.id == other.id
        assert torch.equal(bits(one.label), bits(other.label))
        assert list(one.inputs) == list(other.inputs)
        for name, x in other.inputs.items():
            assert one.inputs[name].dtype == torch.float32
            assert torch.equal(bits(one.inputs[name]), bits(x))


# What is written is read


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=6),
    st.sampled_from(["<f2", "<f4", ">f4", "<f8"]),
    st.data(),
)
def test_a_store_equals_memory_bit_by_bit(lengths, dtype, data):
    # All bits of a float, so also NaN of any kind, ±inf, -0.0 and subnormals.
    values = arrays(dtype, (9, 2), elements=st.floats(width=8 * int(dtype[-1])))
    source = columns(lengths, dtype)
    for x in source.inputs["audio"]:
        x[:] = data.draw(values)[: len(x)]
    with tempfile.TemporaryDirectory() as folder:
        got = build({"all": source}, f"{folder}/store")
        assert_equal(got["all"], build({"all": source})["all"])


@pytest.mark.parametrize(
    "labels", [[1, -100, 2], [[0, 1], [1, 1], [0, 0]], [[0.5], [np.nan], [-1.0]], [np.nan] * 3]
)
def test_labels_of_any_form(tmp_path, labels):
    data = dataset(columns()._replace(labels=labels))
    write_store(tmp_path / "store", {"all": data})
    assert_equal(open_store(tmp_path / "store")["all"], data)


def test_tensors_are_taken(tmp_path):
    x = torch.tensor([[[0.5, -2.0]], [[1e30, 4.0]]])
    for number, dtype in enumerate((torch.bfloat16, torch.float64, torch.float32)):
        source = Columns("a", {"a": list(x.to(dtype).requires_grad_())}, [0.0, 1.0], ["a", "b"])
        got = build({"all": source}, tmp_path / str(number))
        assert_equal(got["all"], build({"all": source})["all"])


def test_order_names_and_odd_counts_are_kept(tmp_path):
    splits = {"valid": columns(), "train": columns(seed=1), "a test": columns(seed=2)}
    splits["train"] = splits["train"]._replace(ids=["é", "\ud800", 'quote " and \n'])
    got = build(splits, tmp_path / "store")
    assert list(got) == ["valid", "train", "a test"]
    assert list(got["valid"].dims) == ["text", "audio"]
    for split, source in splits.items():
        assert_equal(got[split], dataset(source))


def test_a_modality_that_no_sample_has(tmp_path):
    got = build({"all": columns([(1, 0), (2, 0), (3, 0)])}, tmp_path / "store")["all"]
    assert got.dims == WIDTHS
    assert got[1].inputs["audio"].shape == (0, 2)


def test_data_sets_can_be_written_from_memory_and_from_a_store(tmp_path):
    memory = make_store(tmp_path / "one")
    write_store(tmp_path / "new" / "two", memory)
    write_store(tmp_path / "three", open_store(tmp_path / "new" / "two"))
    for name in ("one", "new/two", "three"):
        got = open_store(tmp_path / name)
        assert list(got) == ["valid", "train"]
        for split, data in memory.items():
            assert_equal(got[split], data)
    one, three = (sorted((tmp_path / name).iterdir()) for name in ("one", "three"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in three]


def test_overflow_is_counted_before_it_is_lost(tmp_path):
    x = np.array([[1e39, -1e300, np.inf, np.nan, 3.4028235e38]])
    source = Columns("a", {"a": [x, x[:0]], "b": [np.zeros_like(x), x]}, [0.0, 1.0], ["a", "b"])
    assert build({"all": source})["all"].overflows == {"a": 2, "b": 2}
    write_store(tmp_path / "one", build({"all": source}))
    write_store(tmp_path / "two", build({"all": source}, tmp_path / "three"))
    for name in ("one", "two", "three"):
        assert open_store(tmp_path / name)["all"].overflows == {"a": 2, "b": 2}


def test_the_report_is_that_of_memory(tmp_path):
    memory = make_store(tmp_path / "store")
    assert describe(open_store(tmp_path / "store")) == describe(memory)


def test_files_are_plain_safetensors_and_json(tmp_path):
    build({"all": columns()}, tmp_path / "store")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "all.safetensors",
        "store.json",
    ]
    content = (tmp_path / "store" / "all.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0
    for name, entry in json.loads(content[8 : 8 + size]).items():
        width = {"F32": 4, "I64": 8, "U32": 4, "U8": 1}[entry["dtype"]] if "dtype" in entry else 1
        assert name == "__metadata__" or entry["data_offsets"][0] % width == 0
    tensors = load_file(tmp_path / "store" / "all.safetensors")
    assert tensors["text/offsets"].tolist() == [0, 3, 3, 4]
    assert tensors["text/steps"].shape == (4, 4)
    assert json.loads(tensors["ids"].tobytes()) == ["0/0", "0/1", "0/2"]
    first = tensors["text/steps"][:3].tobytes()
    assert tensors["text/checksums"][:2].tolist() == [zlib.crc32(first), 0]
    checksum = zlib.crc32(content[: content.index(tensors["text/steps"].tobytes())])
    assert json.loads((tmp_path / "store" / "store.json").read_text()) == {
        "format": "tdmer store",
        "version": 2,
        "splits": {"all": [content.index(tensors["text/steps"].tobytes()), checksum]},
    }


def test_the_default_dtype_of_pytorch_does_not_matter(tmp_path):
    data = build({"all": columns()}, tmp_path / "store")["all"]
    torch.set_default_dtype(torch.float64)
    try:
        assert_equal(data, dataset(columns()))
    finally:
        torch.set_default_dtype(torch.float32)


def test_samples_can_be_written_into(tmp_path):
    build({"all": columns()}, tmp_path / "store")
    data = open_store(tmp_path / "store")["all"]
    data[0].inputs["text"].zero_()
    assert_equal(data, dataset(columns()))


@pytest.mark.skipif(not REAL.exists(), reason="real data are not there")
def test_real_data(tmp_path):
    memory = load_mmsa(REAL)
    for split, data in load_mmsa(REAL, store=tmp_path / "store").items():
        assert_equal(data, memory[split])


# Memory


def test_steps_are_neither_gathered_to_write_nor_kept_once_read(tmp_path):
    # 8 MB of float64, of which one sample is 16 kB.
    padded = np.random.default_rng(0).normal(size=(500, 20, 100))
    source = Columns("a", {"a": list(padded)}, np.zeros(500), [str(n) for n in range(500)])
    tracemalloc.start()
    data = build({"all": source}, tmp_path / "store")["all"]
    for sample in data:
        assert len(sample.inputs["a"]) == 20
    describe({"all": data})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What remains is the buffer of the file, 1 MiB, and some 500 names and hashes.
    assert most < 2e6
    assert len(pickle.dumps(data)) < 30_000


def test_no_file_stays_open_or_mapped(tmp_path):
    make_store(tmp_path / "store")
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    data = open_store(tmp_path / "store")
    assert [sample.id for sample in data["valid"]] == data["valid"].ids
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    # A map of a file that is cut short would end the process.
    assert "safetensors\n" not in Path("/proc/self/maps").read_text()


# Processes


def test_a_copy_reads_the_same_files(tmp_path, monkeypatch):
    memory = make_store(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(open_store("store"))
    monkeypatch.chdir("/")
    for split, data in pickle.loads(content).items():
        assert_equal(data, memory[split])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, method):
    memory = make_store(tmp_path / "store")["train"]
    data = open_store(tmp_path / "store")["train"]
    loader = DataLoader(
        data, batch_size=2, collate_fn=collate, num_workers=2, multiprocessing_context=method
    )
    for got, expected in zip(
        loader, DataLoader(memory, batch_size=2, collate_fn=collate), strict=True
    ):
        assert got.ids == expected.ids
        torch.testing.assert_close(got[:3], expected[:3], rtol=0, atol=0)


# Files that are damaged, that change, and that are none


def read_all(folder):
    for data in open_store(folder).values():
        for _ in data:
            pass


def test_every_flipped_bit_is_noticed(tmp_path):
    memory = make_store(tmp_path / "store")
    random = np.random.default_rng(0)
    for path in sorted((tmp_path / "store").iterdir()):
        content = path.read_bytes()
        for place in random.choice(8 * len(content), min(8 * len(content), 300), replace=False):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=f"{path.parent}.* must "):
                read_all(tmp_path / "store")
        path.write_bytes(content)
    assert_equal(open_store(tmp_path / "store")["train"], memory["train"])


def test_damaged_steps_are_noticed_where_they_are_read(tmp_path):
    memory = make_store(tmp_path / "store")
    path = tmp_path / "store" / "train.safetensors"
    content = bytearray(path.read_bytes())
    # The steps of the last modality end the file: those of sample 8, of 9 steps in all 10 of 9 - t.
    content[-3] ^= 1
    path.write_bytes(content)
    data = open_store(tmp_path / "store")["train"]
    for index in range(8):
        torch.testing.assert_close(data[index].inputs, memory["train"][index].inputs)
    with pytest.raises(ValueError, match=r"train.safetensors must hold sample 8 as it was written"):
        data[8]
    with pytest.raises(ValueError, match=r"must hold sample 8 as it was written"):
        describe({"train": data})


def test_a_file_that_was_exchanged_is_an_error(tmp_path):
    make_store(tmp_path / "store")
    data = open_store(tmp_path / "store")["train"]
    (tmp_path / "store" / "valid.safetensors").replace(tmp_path / "store" / "train.safetensors")
    with pytest.raises(ValueError, match=r"must hold sample 1 as it was written.* open it anew"):
        pickle.loads(pickle.dumps(data))[1]


def test_a_file_that_was_cut_is_an_error_and_not_a_crash(tmp_path):
    make_store(tmp_path / "store")
    path = tmp_path / "store" / "train.safetensors"
    data = open_store(tmp_path / "store")["train"]
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(ValueError, match=r"must hold sample 8 as it was written"):
        [sample.id for sample in data]


@pytest.mark.parametrize("size", [0, 5, 100, 700, -1])
def test_a_file_that_is_cut_does_not_open(tmp_path, size):
    make_store(tmp_path / "store")
    path = tmp_path / "store" / "train.safetensors"
    os.truncate(path, size % path.stat().st_size)
    with pytest.raises(ValueError, match=r"train.safetensors must be a whole file of a store, got"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize("content", [b"\x80\x04}.", b"\0" * 5000, b"\xff" * 5000, b"{" * 5000])
def test_a_foreign_file_does_not_open(tmp_path, content):
    make_store(tmp_path / "store")
    (tmp_path / "store" / "valid.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"valid.safetensors must be a whole file of a store, got"):
        open_store(tmp_path / "store")


def forge(folder, overflows='{"text": 0, "audio": 0}', **changes):
    """Write a split anew with other tensors, and a checksum that fits; None takes one away."""
    path = folder / "all.safetensors"
    parts = load_file(path) | changes
    tensors = {name: np.asarray(x) for name, x in parts.items() if x is not None}
    save_file(tensors, path, overflows and {"overflows": overflows})
    content = path.read_bytes()
    index = json.loads((folder / "store.json").read_text())
    index["splits"]["all"] = [len(content), zlib.crc32(content)]
    (folder / "store.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "labels"),
        ({"labels": torch.zeros(2)}, "do not belong together"),
        ({"labels": torch.zeros(0)}, "do not belong together"),
        ({"ids": torch.tensor(list(b'["a", "b"]'), dtype=torch.uint8)}, "do not belong together"),
        ({"ids": torch.tensor(list(b"[" * 10**5), dtype=torch.uint8)}, "RecursionError"),
        ({"text/steps": None}, "text/steps"),
        ({"text/steps": torch.zeros(4)}, "not enough values to unpack"),
        ({"text/offsets": torch.tensor([0, 3, 3, 5])}, "offsets of 'text' that do not cut 4 steps"),
        ({"text/offsets": torch.tensor([0, 3, 2, 4])}, "offsets of 'text'"),
        ({"text/offsets": torch.tensor([1, 3, 3, 4])}, "offsets of 'text'"),
        ({"text/offsets": torch.tensor([0, 2**62, -(2**62) - 10, 4])}, "offsets of 'text'"),
        ({"text/offsets": torch.tensor([0, 3, 4])}, "do not belong together"),
        ({"overflows": '{"text": 0}'}, "do not belong together"),
        ({"overflows": "{}"}, "do not belong together"),
        ({"overflows": '{"text": 0, "video": 0}'}, "video/steps"),
        ({"overflows": "{"}, "JSONDecodeError"),
        ({"overflows": None}, "__metadata__"),
    ],
)
def test_parts_that_do_not_fit_do_not_open(tmp_path, changes, message):
    build({"all": columns()}, tmp_path / "store")
    forge(tmp_path / "store")
    assert_equal(open_store(tmp_path / "store")["all"], dataset(columns()))
    forge(tmp_path / "store", **changes)
    with pytest.raises(ValueError, match=rf"all.safetensors must be a whole .*{message}"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 10**5,
        '{"splits": {"all": [1, 2]}}',
        '{"format": "tdmer store", "version": 1, "splits": ["all"]}',
        '{"format": "tdmer store", "version": 2}',
        '{"format": "tdmer store", "version": 2, "splits": {}}',
        '{"format": "tdmer store", "version": 2, "splits": ["all"]}',
        '{"format": "tdmer store", "version": 2, "splits": {"../all": [1, 2]}}',
    ],
)
def test_an_index_that_is_none_does_not_open(tmp_path, content):
    build({"all": columns()}, tmp_path / "store")
    shutil.copy(tmp_path / "store" / "all.safetensors", tmp_path)
    (tmp_path / "store" / "store.json").write_text(content)
    with pytest.raises(ValueError, match=r"store.json must be a whole file of a store, got"):
        open_store(tmp_path / "store")


def test_a_split_that_is_gone(tmp_path):
    make_store(tmp_path / "store")
    (tmp_path / "store" / "train.safetensors").unlink()
    with pytest.raises(ValueError, match=r"train.safetensors must be .* got FileNotFoundError"):
        open_store(tmp_path / "store")


def test_a_path_without_a_store(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path, tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=rf"{path} must be a folder with store.json"):
            open_store(path)


# Writing that fails


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_exists_is_refused_and_kept(tmp_path, kind):
    path = tmp_path / "store"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match=r"store must be a new folder, got .* open_store"):
        write_store(path, {"all": dataset(columns())})
    assert list(tmp_path.iterdir()) == [path]
    assert kind != "file" or path.read_text() == "precious"


class Interrupting:
    """Sequences whose last does not come."""

    def __getitem__(self, index):
        if index == 2:
            raise KeyboardInterrupt
        return torch.ones(1, 2)


def interrupted_write(path):
    train, valid = dataset(columns()), dataset(columns([(1, 1)] * 3, seed=1))
    valid._steps["audio"] = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        write_store(path, {"train": train, "valid": valid})


def test_an_interrupted_write_leaves_nothing(tmp_path):
    interrupted_write(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_write_leaves_does_not_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    interrupted_write(tmp_path / "store")
    (partial,) = tmp_path.iterdir()
    assert (partial / "train.safetensors").exists()
    assert partial.name != "store"
    with pytest.raises(FileNotFoundError):
        open_store(partial)
    # Nor is it in the way of another attempt.
    assert len(build({"all": columns()}, tmp_path / "store")["all"]) == 3


def test_errors_of_the_disk_are_left_alone_and_nothing_is_kept(tmp_path, monkeypatch):
    def full(path, target):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="full"):
        build({"all": columns()}, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["", ".", "..", "a/b", "../a", "a\\b", "a\0b", 3, "a" * 300])
@pytest.mark.usefixtures("unchecked")
def test_split_names_must_be_file_names(tmp_path, split):
    with pytest.raises(ValueError, match=r"split names must be names of files, of .* got"):
        build({split: columns()}, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_no_split(tmp_path):
    with pytest.raises(ValueError, match=r"datasets must hold at least one split, got \{\}"):
        write_store(tmp_path / "store", {})


@pytest.mark.parametrize("store", [None, "store"])
def test_bad_columns_name_their_split(tmp_path, store):
    bad = columns(seed=1)
    bad.inputs["text"][1] = np.zeros((2, 3), np.float32)
    message = r"split 1: inputs\['text'\], sample 1 \('1/1'\), must have 4 features, .* got 3"
    with pytest.raises(ValueError, match=message):
        build({"a": columns(), "b": bad}, store and tmp_path / store)
    assert list(tmp_path.iterdir()) == []


def test_a_store_needs_no_package_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    memory = make_store(tmp_path / "store")
    assert_equal(open_store(tmp_path / "store")["train"], memory["train"])
