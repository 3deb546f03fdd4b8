import collections
import contextlib
import copyreg
import io
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tdmer.data import load_pickle

REAL = Path(__file__).parents[1] / ".." / "shared" / "data"
DTYPES = ("?", "<i1", "<u2", "<i4", ">i8", "<f2", "<f4", ">f8", "<c16", "<U5", ">U3", "S4", "O")


class Call:
    """Pickles as a call of ``function(*args)``, with a state if one is given."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        if self.state is None:
            return self.function, self.args
        return self.function, self.args, self.state


def write(tmp_path, content):
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return path


def load(tmp_path, content):
    return load_pickle(write(tmp_path, content))


def named(module, name, args=b")"):
    """A pickle of a call of a global; ``args`` is the code that pushes the arguments."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + args + b"R."


def same(one, other):
    if isinstance(one, np.ndarray):
        assert type(other) is np.ndarray
        assert other.dtype == one.dtype
        if one.dtype == object:
            assert other.shape == one.shape
            assert all(same(a, b) for a, b in zip(one.flat, other.flat, strict=True))
        else:
            np.testing.assert_array_equal(other, one)
        return True
    if isinstance(one, (list, tuple)):
        assert type(other) is type(one)
        assert len(other) == len(one)
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        assert list(other) == list(one)
        return all(same(value, other[key]) for key, value in one.items())
    assert other == one
    assert type(other) is type(one)
    return True


# What is read


@pytest.mark.parametrize("protocol", range(6))
def test_everything_allowed_comes_back(tmp_path, protocol):
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(3.0), np.arange(2.0)]
    pairs = np.empty(2, object)
    pairs[0], pairs[1] = (1, 2), (3, 4)
    shared = np.arange(4)
    value = {
        "plain": [None, True, 7, -(2**70), 0.5, 1 - 2j, "tëxt", b"", b"\xff\n", bytearray(b"ab")],
        "containers": ({"a", "b"}, frozenset({1}), {}, (), [[]], bytearray()),
        "scalars": [np.float32(1.5), np.int64(-3), np.str_("né"), np.bool_(True)],
        "arrays": [np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES if dtype != "?"],
        "bool": np.array([True, False]),
        "order": [
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
            np.asfortranarray(np.array([["a", 1], [None, 2]], object)),
        ],
        "no axes, no entries": [np.array(2.0), np.zeros((0, 74)), np.array([], "<U1")],
        "ragged": ragged,
        "pairs": pairs,
        "shared": (shared, shared),
        "dtype": np.dtype(">f4"),
    }
    assert same(value, load(tmp_path, pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_ordered_and_default_dicts_become_dicts(tmp_path, protocol):
    counts = collections.defaultdict(list, a=[1])
    value = [collections.OrderedDict(a=1, b=np.ones(2)), counts]
    got = load(tmp_path, pickle.dumps(value, protocol))
    assert same([{"a": 1, "b": np.ones(2)}, {"a": [1]}], got)


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(dtype) for dtype in DTYPES if dtype != "O"]),
        hnp.array_shapes(min_dims=0, min_side=0),
    ),
    st.integers(0, 5),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_round_trip(tmp_path, array, protocol):
    assert same(array, load(tmp_path, pickle.dumps(array, protocol)))


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_names_of_numpy_core(tmp_path, core):
    content = pickle.dumps([np.ones(2), np.float64(2.0)], 2)
    for written in (b"numpy.core", b"numpy._core"):
        content = content.replace(written + b".multi", core.encode() + b".multi")
    assert core.encode() in content
    assert same([np.ones(2), np.float64(2.0)], load(tmp_path, content))


def test_python_2_text_and_arrays_are_latin_1(tmp_path):
    # Python 2: everything is 'str', written with SHORT_BINSTRING, an array's bytes among it.
    raw = struct.pack("<2f", -1.5, 2.25)
    content = (
        b"\x80\x02]q\x00(cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tb"
        b"U\x04caf\xe9c__builtin__\nset\n](K\x05e\x85Re."
    )
    array, text, numbers = load(tmp_path, content)
    assert same(np.array([-1.5, 2.25], "<f4"), array)
    assert (text, numbers) == ("café", {5})


def test_what_is_shared_stays_shared(tmp_path):
    inner = [np.ones(1)]
    got = load(tmp_path, pickle.dumps([inner, (inner, np.zeros(1))]))
    assert got[1][0] is got[0]
    assert same([inner, (inner, np.zeros(1))], got)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_are_read_only_and_not_held_twice(tmp_path, protocol):
    path = write(tmp_path, pickle.dumps(np.zeros(1_000_000), protocol))
    tracemalloc.start()
    array = load_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * array.nbytes
    assert not array.flags.writeable


@pytest.mark.skipif(not REAL.exists(), reason="the real data are not at ../shared/data")
def test_real_python_2_file():
    samples = load_pickle(REAL / "mosi_valid_wordaligned.pkl")
    assert len(samples) == 229
    (_words, visual, acoustic, text), label, name = samples[0]
    assert visual.shape == (18, 47)
    assert acoustic.shape == (18, 74)
    assert visual.dtype == acoustic.dtype == np.float32
    assert len(text) == 18
    assert label.shape == (1, 1)
    assert name == "WKA5OygbEKI[0]"


# What is refused


def test_os_system_is_refused_by_name_and_does_not_run(tmp_path):
    trace = tmp_path / "ran"
    path = write(tmp_path, pickle.dumps(Call(os.system, f"touch {trace}")))
    with pytest.raises(ValueError, match=r"file\.pkl must hold .* refuses 'posix\.system'"):
        load_pickle(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()


GADGETS = [
    *[("os", name) for name in ("system", "popen", "execv", "remove", "getcwd")],
    ("nt", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    *[
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in (
            *("eval", "exec", "getattr", "setattr", "open", "compile", "__import__", "globals"),
            *("object", "type", "range", "slice", "map", "print", "input", "vars", "memoryview"),
        )
    ],
    ("__builtin__", "execfile"),
    ("__builtin__", "file"),
    ("__builtin__", "xrange"),
    ("functools", "partial"),
    ("functools", "reduce"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("importlib", "import_module"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("copyreg", "__newobj__"),
    ("types", "CodeType"),
    ("types", "FunctionType"),
    ("ctypes", "CDLL"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("pickle", "Unpickler.find_class"),
    ("marshal", "loads"),
    ("shutil", "rmtree"),
    ("socket", "socket"),
    ("webbrowser", "open"),
    ("pydoc", "pipepager"),
    ("timeit", "timeit"),
    ("runpy", "run_path"),
    ("_codecs", "decode"),
    ("_codecs", "lookup"),
    ("codecs", "encode"),
    ("collections", "Counter"),
    ("collections", "namedtuple"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy", "memmap"),
    ("numpy", "zeros"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.core.multiarray", "empty"),
    ("numpy._core.multiarray", "fromfile"),
    ("numpy._core.multiarray", "_reconstruct.__globals__"),
    ("numpy.ma.core", "_mareconstruct"),
    ("numpy.core.records", "recarray"),
    ("pandas", "read_pickle"),
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),
    ("torch", "load"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.hub", "load"),
    ("tdmer.data.unpickling", "load_pickle"),
]


@pytest.mark.parametrize(("module", "name"), GADGETS)
@pytest.mark.parametrize("form", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_gadgets_are_refused_by_name(tmp_path, module, name, form):
    if form == "GLOBAL":
        content = b"c" + f"{module}\n{name}\n".encode() + b"(tR."
    elif form == "INST":
        content = b"(i" + f"{module}\n{name}\n".encode() + b"."
    else:
        texts = b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, name))
        content = b"\x80\x04" + texts + b"\x93)R."
    with pytest.raises(ValueError, match="load_pickle refuses ") as caught:
        load(tmp_path, content)
    assert f"'{module}.{name}'" in str(caught.value)


DTYPE = b"cnumpy\ndtype\nU\x02f4\x89\x88\x87R"
OBJECT = b"cnumpy\ndtype\nU\x02O8\x89\x88\x87R"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x10"  # 2**44, as LONG1


def array_of(shape, dtype, content):
    return b"\x80\x03" + EMPTY + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Memory that a few bytes ask for.
        (array_of(HUGE + b"\x85", DTYPE, b"C\x04abcd"), "4 bytes for an array of shape"),
        (array_of(HUGE + b"K\x00\x86", DTYPE, b"C\x00"), "too large for an array without"),
        (array_of(HUGE + b"\x85", DTYPE.replace(b"\x02f4", b"\x02S0"), b"C\x00"), "0 bytes for"),
        (array_of(HUGE + b"\x85", OBJECT, b"]"), "0 objects for an array of shape"),
        (array_of(b"J\xff\xff\xff\xff\x85", DTYPE, b"C\x00"), "shape is not whole numbers"),
        (array_of(b"X\x01\x00\x00\x00a", DTYPE, b"C\x00"), "shape is not whole numbers"),
        (named("numpy.core.multiarray", "scalar", DTYPE + HUGE + b"\x86"), "of type int"),
        (named("builtins", "bytearray", HUGE + b"\x85"), "'bytearray' of int"),
        (named("builtins", "bytes", HUGE + b"\x85"), "'bytes' with an argument"),
        (named("builtins", "set", HUGE + b"\x85"), "a container of int"),
        (named("numpy", "ndarray", HUGE + b"\x85\x85"), "to call _Name"),
        (named("builtins", "list", b"X\x01\x00\x00\x00a\x85"), "to call _Name"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**44) + b"ab.", "ends inside BYTEARRAY8"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**44) + b"ab.", "ends inside BINBYTES8"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**44) + b"N.", "ends inside a frame"),
        # What is no plain array.
        (array_of(b"K\x01\x85", b"N", b"C\x04abcd"), "whose dtype is NoneType"),
        (array_of(b"K\x01\x85", OBJECT, b"C\x08abcdefgh"), "content of type bytes"),
        (array_of(b"K\x01\x85", DTYPE, b"](K\x01K\x02K\x03K\x04e"), "content of type list"),
        (
            named("numpy.core.multiarray", "scalar", OBJECT + b"](K\x01e\x86"),
            "scalar or buffer of obj",
        ),
        (named("numpy", "dtype", b"U\x02V8\x85"), "the dtype 'V8'"),
        (named("numpy", "dtype", b"U\x02M8\x85"), "the dtype 'M8'"),
        (named("numpy", "dtype", b"]\x85"), "the dtype list"),
        (b"\x80\x03" + DTYPE + b"(K\x03U\x01<U\x01aNNtb.", "a dtype with fields"),
        (b"\x80\x03" + DTYPE + b"(K\x03U\x01ANNNtb.", "a dtype with fields"),
        (named("_codecs", "encode", b"X\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86"), "to Latin-1"),
        (named("_codecs", "encode", b"X\x01\x00\x00\x00a\x85"), "to Latin-1"),
        (named("builtins", "complex", b"X\x01\x00\x00\x00aG" + bytes(8) + b"\x86"), "'complex'"),
        # Writing into what the table gives, or keeping it.
        (b"\x80\x02cnumpy\ndtype\n}(X\x01\x00\x00\x00aK\x01ub.", "a state for _Global"),
        (b"\x80\x02cnumpy\nndarray\n}(X\x01\x00\x00\x00aK\x01ub.", "a state for _Name"),
        (b"\x80\x02cnumpy\ndtype\n.", "a function among the data"),
        (b"\x80\x02](cnumpy\nndarray\nK\x01e.", "a function among the data"),
        (b"\x80\x02}cnumpy\nndarray\nNs.", "a key or set entry that holds _Name"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "NEWOBJ"),
        # What reaches outside the file.
        (b"Pabc\n.", "the opcode PERSID"),
        (b"K\x01Q.", "the opcode BINPERSID"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"\x80\x02\x83\x01\x00.", "the opcode EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "the opcode EXT4"),
        (b"\x80\x05\x97.", "the opcode NEXT_BUFFER"),
        (b"\x80\x05N\x98.", "the opcode READONLY_BUFFER"),
    ],
)
def test_bombs_and_tricks_are_refused(tmp_path, content, message):
    path = write(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        load_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 2**24


LONG = 10_000
LATIN = b"X\x06\x00\x00\x00latin1q\x010"


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"X" + struct.pack("<I", LONG) + b"a" * LONG, b"c_codecs\nencode\nh\x00h\x01\x86R"),
        (b"B" + struct.pack("<I", LONG) + b"a" * LONG, b"cbuiltins\nbytearray\nh\x00\x85R"),
        (b"](" + b"K\x01" * LONG + b"e", b"cbuiltins\nset\nh\x00\x85R"),
        (b"](" + b"K\x01" * LONG + b"e", b"cbuiltins\nfrozenset\nh\x00\x85R"),
        (
            b"B" + struct.pack("<I", LONG) + b"a" * LONG,
            EMPTY + b"(K\x01M" + struct.pack("<H", LONG // 4) + b"\x85" + DTYPE + b"\x89h\x00tb",
        ),
    ],
    ids=["encode", "bytearray", "set", "frozenset", "array"],
)
def test_content_is_not_multiplied_through_the_memo(tmp_path, first, again):
    start = b"\x80\x03" + LATIN + first + b"q\x000]("
    assert len(load(tmp_path, start + again + b"e.")) == 1
    with pytest.raises(ValueError, match="content repeated to more than the size of the file"):
        load(tmp_path, start + again * 6 + b"e.")


@pytest.mark.parametrize("protocol", range(6))
def test_content_that_compresses_is_no_repetition(tmp_path, protocol):
    value = [np.zeros(10_000, "<U5"), bytearray(50_000), bytes(50_000), {*range(5000)}]
    assert same(value, load(tmp_path, pickle.dumps(value, protocol)))


def test_a_cached_extension_is_refused(tmp_path):
    # Python keeps resolved extensions and hands them out without find_class.
    copyreg.add_extension("os", "getcwd", 250)
    try:
        pickle.loads(b"\x80\x02\x82\xfa.")
        with pytest.raises(ValueError, match="the opcode EXT1"):
            load(tmp_path, b"\x80\x02\x82\xfa)R.")
    finally:
        copyreg.remove_extension("os", "getcwd", 250)
        copyreg.clear_extension_cache()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a pickle, got an empty file"),
        (b"not a pickle", "must be a whole pickle"),
        (b"\xff\xff", r"before byte 1 of 2 with .*: no opcode b'\\xff'"),
        (b"\x80\x04N", "ends before STOP"),
        (b"\x80\x04X\x05\x00\x00\x00ab", "ends inside BINUNICODE"),
        (b"cnumpy\nndarr", "ends inside GLOBAL"),
        (b"T\xff\xff\xff\xffabc.", "BINSTRING declares -1 bytes"),
        (b"\x80\x04.", "UnpicklingError"),
        (b"\x80\x63N.", "pickle protocol 99, which is unknown"),
    ],
)
def test_damaged_files_name_the_file(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_pickle(path)
    assert str(caught.value).startswith(str(path))


def test_every_truncation_is_a_clear_error(tmp_path):
    content = pickle.dumps({"x": np.arange(3.0), "y": ["a", 1.5]}, 2)
    for end in range(1, len(content)):
        with pytest.raises(ValueError, match="must be a whole pickle"):
            load(tmp_path, content[:end])


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_altered_files_load_or_raise_value_error(tmp_path, data):
    content = bytearray(pickle.dumps({"x": np.arange(3.0), "y": (["a"], 1.5, {2})}, 2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    # Any other error fails the test.
    with contextlib.suppress(ValueError):
        load(tmp_path, bytes(content))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / "absent.pkl")


def test_what_follows_stop_is_not_read(tmp_path):
    buffer = io.BytesIO()
    pickle.dump([1], buffer)
    assert load(tmp_path, buffer.getvalue() + b"cos\nsystem\n") == [1]
