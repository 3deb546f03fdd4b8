import bz2
import collections
import contextlib
import copyreg
import functools
import gzip
import io
import itertools
import lzma
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tdmer.data import load_pickle, unpickling

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


@pytest.mark.parametrize(
    "content",
    [
        b"(I1\nI2\nL-3L\nL4\nl.",
        b"(lp0\nI01\naI00\naF1.5\naFnan\na0I7\n.",
        b"(dp0\nS'a\\n\\x41\\''\np1\nV\\u00e9x\np2\nsg1\ng2\nsg0\n.",
        b'(S"a\'b"\nI1\nN\x88d.',
        b"(K\x01K\x02(K\x03K\x041t.",
        b"K\x01(0K\x02\x86.",
        b"(((0K\x051K\x07.",
        b"](K\x012e2\x86.",
        b"S'caf\xe9\\xe9'\n.",
        b"N\x85\x88\x89\x87M\xff\xffJ\xff\xff\xff\xff\x86\x86.",
        b"\x8a\x00\x8a\x01\xff\x8b\x02\x00\x00\x00\x00\x80\x87.",
        b"(U\x01aT\x02\x00\x00\x00\xe9b\x8c\x01c\x8d\x01\x00\x00\x00\x00\x00\x00\x00dt.",
        b"(C\x01aB\x01\x00\x00\x00b\x8e\x01\x00\x00\x00\x00\x00\x00\x00ct.",
        b"X\x03\x00\x00\x00\xed\xa0\x80.",
        b"\x8f(K\x01K\x02\x90(K\x03\x91\x86.",
        b"}K\x01NsK\x01\x88s.",
        b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00\x80\x02N.",
        b"G\x3f\xf8\x00\x00\x00\x00\x00\x00q\x050h\x05r\x00\x01\x00\x000j\x00\x01\x00\x00.",
    ],
)
def test_every_opcode_does_what_it_does_in_pickle(tmp_path, content):
    assert repr(load(tmp_path, content)) == repr(pickle.loads(content, encoding="latin1"))


# What is refused


def test_os_system_is_refused_by_name_and_does_not_run(tmp_path):
    trace = tmp_path / "ran"
    path = write(tmp_path, pickle.dumps(Call(os.system, f"touch {trace}")))
    with pytest.raises(ValueError, match=r"file\.pkl must hold .* refuses 'posix\.system'"):
        load_pickle(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()


GADGETS = {
    "os": "system popen execv spawnv posix_spawn fork kill remove rename chmod getcwd putenv "
    "_wrap_close",
    "posix": "system fork execve open",
    "nt": "system startfile",
    "posixpath": "os.system",
    "builtins": "eval exec compile getattr setattr delattr open __import__ globals locals vars dir "
    "map filter apply object type range slice print input memoryview super classmethod "
    "property id hash enumerate zip iter next breakpoint help exit __build_class__ "
    "getattr.__class__ str.format bytes.fromhex dict.fromkeys list.__init__ Exception "
    "BaseException",
    "__builtin__": "eval exec execfile compile getattr setattr file open apply map reduce input "
    "raw_input reload xrange buffer intern unicode object type globals",
    "exceptions": "Exception SystemExit",
    "subprocess": "Popen run call check_call check_output getoutput getstatusoutput",
    "commands": "getoutput",
    "popen2": "popen3",
    "sys": "modules modules.get exit settrace setrecursionlimit _getframe addaudithook "
    "modules.__setitem__",
    "functools": "partial partial.__setstate__ reduce singledispatch lru_cache",
    "operator": "attrgetter methodcaller itemgetter call setitem",
    "itertools": "starmap accumulate repeat count",
    "importlib": "import_module reload __import__",
    "importlib.machinery": "SourceFileLoader ExtensionFileLoader",
    "importlib._bootstrap_external": "SourceFileLoader.load_module",
    "_imp": "load_dynamic create_dynamic",
    "imp": "load_source",
    "pkgutil": "resolve_name",
    "zipimport": "zipimporter",
    "runpy": "run_path run_module _run_code",
    "code": "interact InteractiveInterpreter",
    "codeop": "compile_command",
    "copyreg": "_reconstructor __newobj__ __newobj_ex__ add_extension __reduce_ex__",
    "copy_reg": "_reconstructor __newobj__",
    "types": "CodeType FunctionType MethodType SimpleNamespace new_class",
    "ctypes": "CDLL string_at memmove pythonapi cast",
    "cffi": "FFI",
    "pickle": "loads load Unpickler Unpickler.find_class _loads",
    "_pickle": "loads Unpickler",
    "cPickle": "loads",
    "marshal": "loads load",
    "shelve": "open",
    "dbm": "open",
    "shutil": "rmtree move copy unpack_archive",
    "socket": "socket create_connection",
    "urllib.request": "urlopen urlretrieve",
    "http.client": "HTTPSConnection",
    "ftplib": "FTP",
    "smtplib": "SMTP",
    "telnetlib": "Telnet",
    "ssl": "get_server_certificate",
    "webbrowser": "open get",
    "antigravity": "geohash",
    "pty": "spawn",
    "platform": "popen _syscmd_ver",
    "pip": "main",
    "pip._internal": "main",
    "setuptools": "setup",
    "ensurepip": "bootstrap",
    "venv": "create",
    "timeit": "timeit repeat Timer",
    "cProfile": "run runctx",
    "profile": "run Profile.run",
    "trace": "Trace.run",
    "pdb": "run runeval Pdb",
    "bdb": "Bdb.run Bdb.runeval",
    "doctest": "testfile debug_script",
    "unittest": "main",
    "idlelib.pyshell": "ModifiedInterpreter.runcode",
    "idlelib.autocomplete": "AutoComplete.get_entity",
    "lib2to3.pgen2.pgen": "ParserGenerator",
    "lib2to3.pgen2.grammar": "Grammar.loads",
    "logging.config": "listen dictConfig fileConfig _resolve",
    "logging": "FileHandler",
    "asyncio": "create_subprocess_shell run",
    "asyncio.unix_events": "_UnixSubprocessTransport._start",
    "asyncio.subprocess": "create_subprocess_exec",
    "multiprocessing": "Process Pool",
    "multiprocessing.util": "spawnv_passfds",
    "multiprocessing.connection": "Client",
    "concurrent.futures": "ProcessPoolExecutor",
    "_posixsubprocess": "fork_exec",
    "_xxsubinterpreters": "run_string",
    "threading": "Thread Timer",
    "_thread": "start_new_thread",
    "signal": "signal raise_signal",
    "resource": "setrlimit",
    "mmap": "mmap",
    "pathlib": "Path PosixPath Path.unlink Path.read_text",
    "tempfile": "NamedTemporaryFile mkstemp SpooledTemporaryFile",
    "glob": "glob",
    "fileinput": "FileInput",
    "linecache": "getline",
    "tarfile": "open",
    "zipfile": "ZipFile",
    "gzip": "open GzipFile decompress",
    "bz2": "decompress",
    "lzma": "decompress",
    "zlib": "decompress",
    "io": "open open_code FileIO BytesIO StringIO",
    "_io": "open FileIO",
    "codecs": "open decode encode",
    "_codecs": "decode lookup register escape_decode",
    "collections": "Counter namedtuple deque ChainMap UserDict",
    "weakref": "ref finalize WeakValueDictionary",
    "gc": "get_objects get_referrers",
    "inspect": "getattr_static stack",
    "ast": "literal_eval",
    "atexit": "register",
    "contextlib": "ExitStack.callback redirect_stdout",
    "pydoc": "pipepager locate tempfilepager",
    "sqlite3": "connect",
    "xml.etree.ElementTree": "parse",
    "uuid": "UUID _get_command_stdout",
    "datetime": "datetime",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "array": "array _array_reconstructor",
    "random": "Random",
    "re": "compile _compile",
    "string": "Template Formatter.get_field",
    "numpy": "load fromfile memmap zeros ones empty arange tile repeat matrix recarray save "
    "savetxt core.multiarray.empty dtype.__class__ ndarray.tofile vectorize frompyfunc "
    "genfromtxt",
    "numpy.lib.npyio": "load NpzFile DataSource",
    "numpy.lib._npyio_impl": "load",
    "numpy.lib.format": "read_array open_memmap",
    "numpy.lib._datasource": "DataSource.open",
    "numpy.f2py": "compile run_main",
    "numpy.f2py.crackfortran": "getlincoef _eval_length myeval param_eval",
    "numpy.f2py.diagnose": "run_command",
    "numpy.distutils.exec_command": "exec_command _exec_command",
    "numpy.distutils.cpuinfo": "getoutput command_info",
    "numpy.testing": "rundocs measure",
    "numpy.testing._private.utils": "runstring _assert_valid_refcount measure",
    "numpy.core.multiarray": "empty zeros fromfile fromstring set_typeDict",
    "numpy._core.multiarray": "fromfile _reconstruct.__globals__ scalar.__call__ frombuffer",
    "numpy._core.numeric": "_frombuffer.__globals__ fromfile",
    "numpy.core.records": "recarray",
    "numpy.ma.core": "_mareconstruct",
    "numpy.random._pickle": "__generator_ctor __bit_generator_ctor",
    "pandas": "read_pickle eval read_csv",
    "pandas.io.pickle": "read_pickle",
    "pandas.core.internals.managers": "BlockManager",
    "scipy.io": "loadmat",
    "scipy.sparse": "csr_matrix",
    "sklearn.externals.joblib": "load",
    "joblib": "load",
    "joblib.numpy_pickle": "NumpyArrayWrapper",
    "joblib._memmapping_reducer": "reduce_array_memmap_backward",
    "dill": "loads",
    "dill._dill": "_create_function _eval_repr _load_type",
    "cloudpickle": "loads",
    "cloudpickle.cloudpickle": "_make_function _builtin_type subimport",
    "torch": "load save FloatStorage device Size from_file serialization.load ops.load_library",
    "torch._utils": "_rebuild_tensor_v2 _rebuild_tensor _rebuild_parameter _rebuild_from_type_v2",
    "torch.storage": "_load_from_bytes UntypedStorage TypedStorage",
    "torch._tensor": "_rebuild_from_type_v2 Tensor",
    "torch.nn.parameter": "Parameter",
    "torch.hub": "load download_url_to_file load_state_dict_from_url",
    "torch.jit": "load script CompilationUnit",
    "torch.jit.unsupported_tensor_ops": "execWrapper",
    "torch.serialization": "load _load _legacy_load",
    "torch.utils.cpp_extension": "load load_inline",
    "torch.utils._config_module": "ConfigModule.load_config",
    "torch.utils.collect_env": "run",
    "torch.utils.bottleneck.__main__": "run_cprofile",
    "torch.fx.graph_module": "reduce_graph_module _exec_with_source",
    "torch.multiprocessing.reductions": "rebuild_tensor",
    "torch._dynamo.guards": "GuardBuilder.get",
    "torch._inductor.codecache": "compile_file",
    "torch.distributed.rpc.internal": "_run_function",
    "tensorflow": "io.write_file raw_ops.ReadFile",
    "keras.models": "load_model",
    "transformers": "pipeline",
    "transformers.dynamic_module_utils": "get_class_in_module",
    "datasets": "load_dataset",
    "yaml": "unsafe_load",
    "requests": "get",
    "django.core.management": "call_command",
    "mmsdk.mmdatasdk": "mmdataset",
    "tdmer.data": "load_pickle",
    "tdmer.data.unpickling": "load_pickle _Global _Interpreter os.system",
    "__main__": "Call x",
}


def text(value):
    """The code that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def routes(module, name):
    """Pickles that call a global with the argument 'x', by every way that names one."""
    lines = b"\x80\x02c" + f"{module}\n{name}\n".encode()
    argument = text("x")
    strings = text(module) + text(name)
    yield "GLOBAL, REDUCE", lines + argument + b"\x85R."
    yield "GLOBAL alone", lines + b"."
    yield "GLOBAL as a factory", b"\x80\x02ccollections\ndefaultdict\n" + lines[2:] + b"\x85R."
    yield "GLOBAL, OBJ", b"\x80\x02(" + lines[2:] + argument + b"o."
    yield "GLOBAL, NEWOBJ", lines + argument + b"\x85\x81."
    yield "GLOBAL, NEWOBJ_EX", lines + argument + b"\x85}\x92."
    yield "GLOBAL, BUILD", lines + b"}" + text("__setstate__") + argument + b"sb."
    yield "GLOBAL, APPEND", lines + argument + b"a."
    yield "INST", b"\x80\x02(" + argument + b"i" + f"{module}\n{name}\n".encode() + b"."
    yield "STACK_GLOBAL, REDUCE", b"\x80\x04" + strings + b"\x93" + argument + b"\x85R."
    memoised = b"\x94" + text(name) + b"\x94" + argument + b"\x9400" + b"0"
    called = b"h\x00h\x01\x93h\x02\x85R."
    yield "STACK_GLOBAL, memoised", b"\x80\x04" + text(module) + memoised + called
    # The same name cut elsewhere: an attribute of what a shorter module holds.
    if "." in module:
        start, _, rest = module.rpartition(".")
        nested = text(start) + text(f"{rest}.{name}")
        yield "STACK_GLOBAL, nested", b"\x80\x04" + nested + b"\x93" + argument + b"\x85R."


# The events of what is watched at this moment, if anything is.
EVENTS: list[list[str]] = []


@pytest.fixture(scope="module", autouse=True)
def audit():
    # A hook cannot be taken away again.
    sys.addaudithook(lambda event, _: EVENTS[-1].append(event) if EVENTS else None)


@contextlib.contextmanager
def nothing_but_one_open():
    """Fail where anything but the opening of one file comes to Python's audit."""
    EVENTS.append([])
    try:
        yield
    finally:
        events = EVENTS.pop()
    assert events == ["open"]


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in GADGETS.items() for name in names.split()],
)
def test_gadgets_are_refused_by_every_route(tmp_path, module, name):
    assert f"{module}.{name}" not in unpickling._ALLOWED
    for route, content in routes(module, name):
        path = write(tmp_path, content)
        with nothing_but_one_open(), pytest.raises(ValueError, match=r"file\.pkl must ") as caught:
            load_pickle(path)
        assert f"load_pickle refuses '{module}.{name}'" in str(caught.value), route


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("os\nsystem", "x", r"'os\\nsystem\.x' is no name"),
        ("", "system", r"'\.system' is no name"),
        ("os", "sys\x1b[2Jtem", r"'os\.sys\\x1b\[2Jtem' is no name"),
        ("os", "x" * 10_000, f"refuses 'os.{'x' * 97}', which"),
    ],
)
def test_odd_names_do_not_reach_the_terminal(tmp_path, module, name, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, b"\x80\x04" + text(module) + text(name) + b"\x93.")


def test_the_audit_sees_what_a_gadget_does(tmp_path):
    path = write(tmp_path, pickle.dumps(Call(os.system, "true")))
    with pytest.raises(AssertionError, match=r"os\.system"), nothing_but_one_open():
        pickle.loads(path.read_bytes())


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
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "the opcode NEWOBJ"),
        (b"\x80\x04cnumpy\ndtype\n)}\x92.", "the opcode NEWOBJ_EX"),
        (b"\x80\x02(cnumpy\ndtype\nU\x02f4o.", "the opcode OBJ"),
        (b"\x80\x02(U\x02f4inumpy\ndtype\n.", "INST builds an object of a class"),
        # What reaches outside the file.
        (b"\x80\x04K\x01K\x02\x93.", "a global whose name is no text"),
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


NESTED = 20_000


def chain(wrap, levels=NESTED, core=b"K\x01"):
    return core + wrap * levels


def shared(wrap, levels=64, core=b"K\x01"):
    """``wrap`` turns two equal things into one: each level doubles what the whole unfolds to."""
    return core + (b"2" + wrap) * levels


PAIR = b"\x86"
FROZEN = b"q\x000(h\x00\x91"
IN_OBJECTS = OBJECT + b"q\x060" + EMPTY + b"q\x070"


def in_array(levels, core=b"K\x01"):
    """Arrays of objects in arrays of objects, the innermost first in a list beside the rest."""
    wrap = EMPTY + b"(K\x01K\x01\x85" + OBJECT + b"\x89](h\x05et" + b"bq\x05"
    return b"](" + core + b"q\x05" + wrap * levels + b"e"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Each as key, set entry, in a frozenset, and as an argument of what builds those.
        (b"}" + chain(b"\x85") + b"Ns.", "a key or set entry of more than 100 entries"),
        (b"}(" + chain(b"\x85") + b"Nu.", "a key or set entry of more than 100 entries"),
        (b"(" + chain(b"\x85") + b"Nd.", "a key or set entry of more than 100 entries"),
        (b"\x8f(" + chain(b"\x85") + b"\x90.", "a key or set entry of more than 100 entries"),
        (b"(" + chain(b"\x85") + b"\x91.", "a key or set entry of more than 100 entries"),
        (named("builtins", "set", b"](" + chain(b"\x85") + b"e\x85"), "a key or set entry of more"),
        (
            named("builtins", "frozenset", chain(b"\x85") + b"\x85\x85"),
            "a key or set entry of more",
        ),
        (
            named("collections", "OrderedDict", b"](](" + chain(b"\x85") + b"Nee\x85"),
            "a key or set entry of more",
        ),
        (b"}" + shared(PAIR) + b"Ns.", "a key or set entry of more than 100 entries"),
        (b"}" + shared(PAIR + FROZEN) + b"Ns.", "a key or set entry of more than 100 entries"),
        (b"}(" + b"K\x01" * 101 + b"tNs.", "a key or set entry of more than 100 entries"),
        (b"}X" + struct.pack("<I", 101 << 8) + b"a" * (101 << 8) + b"Ns.", "more than 100 entries"),
        (b"}\x8b" + struct.pack("<i", 102 << 8) + b"a" * (102 << 8) + b"Ns.", "more than 100 ent"),
        (b"}]\x85Ns.", "a key or set entry that holds list"),
        # Depth and sharing of the whole.
        (chain(b"\x85", 101) + b".", "more than 100 containers in one another"),
        (chain(b"\x85") + b".", "more than 100 containers in one another"),
        (b"]" * NESTED + b"a" * (NESTED - 1) + b".", "more than 100 containers in one another"),
        (b"}" + b"N}" * NESTED + b"s" * NESTED + b".", "more than 100 containers in one another"),
        (
            b"](K\x01" + b"\x85q\x00h\x00" * NESTED + b"e.",
            "more than 100 containers in one another",
        ),
        (b"\x80\x03" + in_array(3000) + b".", "more than 100 containers in one another"),
        (shared(PAIR) + b".", "shared content that unfolds to more than 16777216 entries"),
        (b"]q\x00h\x00a.", "a container that holds itself"),
        (b"]q\x00h\x00\x85a.", "a container that holds itself"),
        (b"}q\x00Nh\x00s.", "a container that holds itself"),
        (
            b"\x80\x03"
            + OBJECT
            + b"0"
            + EMPTY
            + b"q\x00(K\x01K\x01\x85"
            + OBJECT
            + b"\x89](h\x00etb.",
            "a container that holds itself",
        ),
        # What a message or a check would spell out or multiply.
        (named("numpy", "dtype", chain(b"q\x000](h\x00h\x00e", 64) + b"\x85"), "the dtype list"),
        (named("numpy", "dtype", text("f" * NESTED) + b"\x85"), f"the dtype '{'f' * 20}'"),
        (array_of(b"(" + b"K\x01" * 65 + b"t", DTYPE, b"C\x04abcd"), "64 at most"),
        (array_of(b"\x8a\x09" + bytes(8) + b"\x01\x85", DTYPE, b"C\x04abcd"), "64 at most"),
        (
            array_of(
                b"(" + b"\x8b" + struct.pack("<i", 9999) + b"a" * 9999 + b"t", DTYPE, b"C\x00"
            ),
            "64",
        ),
        (b"I" + b"9" * 5000 + b"\n.", "4300 digits"),
        (b"Fx" + b"9" * 9999 + b"\n.", "could not convert"),
        (b"\x80\x03" + EMPTY + b"(" + b"N" * 10 + b"tb.", "a state that is no short tuple"),
        (b"\x80\x03" + EMPTY + b"]b.", "a state that is no short tuple"),
        (
            array_of(b"K\x00\x85", DTYPE.replace(b"\x02f4", b"\x0aS999999999"), b"C\x00"),
            "too large",
        ),
        (named("numpy", "dtype", text("U999999999") + b"\x85"), "must be a whole pickle"),
        (named("numpy", "dtype", text("(1000000000,)f8") + b"\x85"), "the dtype "),
        (named("numpy", "dtype", text("f8,f8") + b"\x85"), "the dtype 'f8,f8'"),
        *(
            (
                array_of(b"K\x01\x85", DTYPE.replace(b"f4", b"U1") + order, b"C\x04" + raw),
                "no characters",
            )
            for order, raw in (
                (b"", struct.pack("<I", 0x110000)),
                (b"(K\x03U\x01>NNNK\x00K\x00K\x00tb", struct.pack(">I", 0x110000)),
            )
        ),
        (b"\x80\x03" + EMPTY + b".", "an array without content"),
        (b"\x80\x02]K\x01b.", "a state for list"),
        (b"\x80\x02cbuiltins\nset\n)RK\x01b.", "a state for set"),
        (b"\x80\x02cbuiltins\nset\n]R.", "to call _Global"),
        (b"\x80\x02K\x01)R.", "to call int"),
    ],
    ids=itertools.count(),
)
def test_data_shaped_to_harm_is_refused(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_pickle(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "value",
    [
        {tuple(range(100)): 1, ("v", (1, 2.0, b"x"), None, frozenset({("a", 1)})): 2},
        {"a" * 25_000: 1, 2**14_000: 2, np.float32(1.5): 3, np.str_("x"): 4, True: 5, 1j: 6},
        [tuple(range(10_000)), set(range(10_000)), frozenset(map(str, range(10_000)))],
        functools.reduce(lambda inner, _: [inner], range(100), 1),
        functools.reduce(lambda inner, _: {"x": (inner,)}, range(50), np.ones(2)),
        [[0.5] * 200] * 200,
    ],
    ids=["tuples", "long keys", "wide", "lists", "dicts", "shared"],
)
@pytest.mark.parametrize("protocol", range(6))
def test_data_within_the_bounds_is_read(tmp_path, value, protocol):
    assert same(value, load(tmp_path, pickle.dumps(value, protocol)))


def test_a_large_memo_index_takes_no_memory(tmp_path):
    path = write(tmp_path, b"\x80\x04Nr\xff\xff\xff\xffp99999999999\n.")
    tracemalloc.start()
    assert load_pickle(path) is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


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
        (b"\x80\x04J\x01\x02", "ends inside BININT"),
        (b"K\x01\x87.", "TUPLE3 asks for what is not there"),
        (b"h\x07.", "BINGET asks for what is not there"),
        (b"Saba\n.", "STRING is not in quotes"),
        (b"S'a\"\n.", "STRING is not in quotes"),
        (b"S'\n.", "STRING is not in quotes"),
        (b"NK\x01a.", "APPEND on NoneType"),
        (b"\x96" + bytes(8) + b"(K\x01e.", "APPENDS on bytearray"),
        (b"](K\x00Nu.", "SETITEMS on list"),
        (b"](K\x00\x90.", "ADDITEMS on list"),
        (b"}(K\x01u.", "a dict with a key that has no value"),
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


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mosi.pkl", pickle.dumps([1]))


def compressed(module):
    def make(path):
        with module.open(path, "wb") as file:
            pickle.dump({"x": np.arange(3)}, file)

    return make


def saved(new):
    return lambda path: torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=new)


def numpy_saved(save):
    def make(path):
        with path.open("wb") as file:
            save(file, np.arange(3))

    return make


def content_of(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "what", "mend"),
    [
        (saved(True), "a file of torch.save", "torch.load"),
        (saved(False), "a file of torch.save", "torch.load"),
        (numpy_saved(np.savez), "a NumPy .npz archive", "numpy.load"),
        (numpy_saved(np.savez_compressed), "a NumPy .npz archive", "numpy.load"),
        (numpy_saved(np.save), "a NumPy .npy file", "numpy.load"),
        (zipped, "an archive", "unpack it"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "an archive", "unpack it"),
        (lambda path: tarfile.open(path, "w").close(), "must be a whole pickle", "damaged"),
        (content_of(bytes(257) + b"ustar"), "an archive", "unpack it"),
        (content_of(b"7z\xbc\xaf'\x1c\0\4"), "an archive", "unpack it"),
        (content_of(b"Rar!\x1a\x07\x01\0"), "an archive", "unpack it"),
        (compressed(gzip), "compressed with gzip", "gunzip"),
        (compressed(bz2), "compressed with bzip2", "bunzip2"),
        (compressed(lzma), "compressed with xz", "unxz"),
        (content_of(b"\x28\xb5\x2f\xfd\x04"), "compressed with Zstandard", "unzstd"),
        (content_of(b"\x04\x22\x4d\x18\x64"), "compressed with LZ4", "unlz4"),
        (content_of(b"\x89HDF\r\n\x1a\n" + bytes(9)), "an HDF5 file", "h5py"),
        (content_of(b"MATLAB 5.0 MAT-file, Platform"), "a MATLAB file", "loadmat"),
        (content_of(b"PAR1\x15\x04"), "a Parquet file", "read_parquet"),
        (content_of(b"ARROW1\0\0\xff\xff"), "an Arrow file", "datasets"),
        (content_of(b"\xff\xff\xff\xff\x80\1\0\0\x10\0\0\0"), "an Arrow file", "datasets"),
        (
            content_of(
                struct.pack("<Q", 59) + b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
            ),
            "a safetensors file",
            "load_file",
        ),
        (
            content_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"),
            "a pointer of git-LFS",
            "git lfs pull",
        ),
        (content_of(b"\n <!DOCTYPE HTML>\n<html>Sign in"), "a web page", "download"),
        (content_of(b"<html><body>Quota exceeded"), "a web page", "download"),
        (content_of(b"<?xml version='1.0'?><Error>"), "a web page", "download"),
        (content_of(b"id,text,label\n1,good,2.0\n"), "it seems to be text", "from_arrays"),
        (content_of(b"segment,text\n1,good\n"), "it seems to be text", "from_arrays"),
        (content_of(b"Phrase\tlabel\ngood\t1\n"), "it seems to be text", "from_arrays"),
        (content_of(b"clip\n1\n2\n"), "it seems to be text", "from_arrays"),
        (content_of(b"Name,y\n.\n"), "it seems to be text", "from_arrays"),
        (content_of("\ufeffvidéo,y\n".encode()), "it seems to be text", "from_arrays"),
        (content_of(b'{"train": {"text": [[1.0]]}}'), "it seems to be text", "from_arrays"),
        (content_of(b"[1, 2]"), "it seems to be text", "from_arrays"),
        (content_of(b"\n"), "it seems to be text", "from_arrays"),
        (content_of(("x" + "é" * 300).encode()), "it seems to be text", "from_arrays"),
        (content_of(pickle.dumps({"x": [1] * 9}, 0)[:-9]), "protocol 0", "text"),
        (content_of(pickle.dumps({"x": [1] * 9}, 4)[:-9]), "it is damaged", "download it again"),
        (content_of(bytes(100)), "it is damaged", "download it again"),
        (content_of(bytes(range(255, 0, -1))), "it is damaged", "download it again"),
    ],
    ids=itertools.count(),
)
def test_other_kinds_of_file_are_named(tmp_path, make, what, mend):
    path = tmp_path / "mosi.pkl"
    make(path)
    with pytest.raises(ValueError, match=r"mosi\.pkl must be a ") as caught:
        load_pickle(path)
    assert what in str(caught.value)
    assert mend in str(caught.value)


@pytest.mark.parametrize("load_from", [str, Path])
def test_a_directory_is_an_os_error(tmp_path, load_from):
    with pytest.raises(IsADirectoryError, match="must be a file, got a directory") as caught:
        load_pickle(load_from(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_lack_of_memory_is_said_as_such(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(unpickling._Finish, "real", fail)
    with pytest.raises(MemoryError, match=r"file\.pkl needs more memory than there is for 5 bytes"):
        load(tmp_path, b"\x80\x04K\x01.")


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
