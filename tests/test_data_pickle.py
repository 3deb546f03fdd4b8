import bz2
import collections
import contextlib
import copyreg
import functools
import gc
import gzip
import io
import itertools
import lzma
import os
import pickle
import struct
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tdmer.data import load_pickle
from tdmer.data.readers import _pickle

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
    with pytest.raises(
        ValueError, match=r"file\.pkl must be a whole pickle .* refuses 'posix\.system'"
    ):
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
    "tdmer.data.readers._pickle": "load_pickle _StandIn _Unpickler os.system",
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


# The events of what a thread watches at this moment, if it watches anything.
WATCHED = threading.local()


@pytest.fixture(scope="module", autouse=True)
def audit():
    # A hook cannot be taken away again.
    sys.addaudithook(lambda event, _: getattr(WATCHED, "events", []).append(event))


@contextlib.contextmanager
def nothing_but_one_open():
    """Fail where anything but the opening of one file comes to Python's audit."""
    gc.disable()  # What is collected may say something by itself.
    WATCHED.events = events = []
    try:
        yield
    finally:
        del WATCHED.events
        gc.enable()
        assert events == ["open"]


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in GADGETS.items() for name in names.split()],
)
def test_gadgets_are_refused_by_every_route(tmp_path, module, name):
    assert f"{module}.{name}" not in _pickle._TABLE
    for route, content in routes(module, name):
        path = write(tmp_path, content)
        with pytest.raises(ValueError, match=r"file\.pkl must ") as caught, nothing_but_one_open():
            load_pickle(path)
        assert f"load_pickle refuses '{module}.{name}'" in str(caught.value), route


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("os\nsystem", "x", r"refuses 'os\\nsystem\.x', which"),
        ("os", "sys\x1b[2Jtem", r"refuses 'os\.sys\\x1b\[2Jtem', which"),
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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Memory that a few bytes ask for.
        (
            array_of(HUGE + b"\x85", DTYPE, b"C\x04abcd"),
            r"content than float32 .* \(17592186044416,",
        ),
        (
            array_of(HUGE + b"\x85", DTYPE.replace(b"\x02f4", b"\x02S0"), b"C\x00"),
            "itemsize cannot",
        ),
        (array_of(HUGE + b"\x85", OBJECT, b"]"), "other content than object of the shape"),
        (array_of(b"J\xff\xff\xff\xff\x85", DTYPE, b"C\x00"), "other content than float32"),
        (array_of(b"X\x01\x00\x00\x00a", DTYPE, b"C\x00"), "requires a 'int' object"),
        (array_of(b"(" + b"K\x01" * 65 + b"t", DTYPE, b"C\x04abcd"), "maximum supported dimension"),
        (named("numpy.core.multiarray", "scalar", DTYPE + HUGE + b"\x86"), "other content than fl"),
        (
            named("builtins", "bytearray", HUGE + b"\x85"),
            "a bytes-like object is required, not 'int'",
        ),
        (named("builtins", "bytes", HUGE + b"\x85"), "takes 0 positional arguments"),
        (named("builtins", "set", HUGE + b"\x85"), "'int' object is not iterable"),
        (named("numpy", "ndarray", HUGE + b"\x85\x85"), "'NoneType' object is not callable"),
        (named("builtins", "list", b"X\x01\x00\x00\x00a\x85"), "'NoneType' object is not callable"),
        # What is no plain array.
        (array_of(b"K\x01\x85", b"N", b"C\x04abcd"), "no attribute 'value'"),
        (array_of(b"K\x01\x85", OBJECT, b"C\x08abcdefgh"), "other content than object"),
        (array_of(b"K\x01\x85", DTYPE, b"](K\x01K\x02K\x03K\x04e"), "other content than float32"),
        (named("numpy", "dtype", b"U\x02V8\x85"), "a dtype of other than numbers"),
        (named("numpy", "dtype", b"U\x02M8\x85"), "a dtype of other than numbers"),
        (named("numpy", "dtype", b"]\x85"), "expected string or bytes-like object"),
        (named("numpy", "dtype", text("(1000000000,)f8") + b"\x85"), "a dtype of other than numb"),
        (named("numpy", "dtype", text("f8,f8") + b"\x85"), "a dtype of other than numbers"),
        (b"\x80\x03" + DTYPE + b"(K\x03U\x01ANNNtb.", "byteorder"),
        (
            named("_codecs", "encode", b"X\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86"),
            "KeyError: 'zlib'",
        ),
        # Doing more to what the table gives than to call it, or keeping it.
        (
            b"\x80\x02cnumpy\ndtype\n}(X\x01\x00\x00\x00aK\x01ub.",
            "'NoneType' object is not callable",
        ),
        (b"\x80\x02cnumpy\nndarray\n}(X\x01\x00\x00\x00aK\x01ub.", "'NoneType' object is not cal"),
        (
            b"\x80\x02cnumpy\ndtype\nN}" + text("call") + b"Ns\x86b.",
            "'NoneType' object is not callable",
        ),
        (b"\x80\x02cnumpy\ndtype\n.", "a function or an array without content among"),
        (b"\x80\x02](cnumpy\nndarray\nK\x01e.", "a function or an array without content among"),
        (b"\x80\x02}Ncnumpy\nndarray\ns.", "a function or an array without content among"),
        (b"\x80\x03" + EMPTY + b"\x85.", "a function or an array without content among"),
        (b"\x80\x02}cnumpy\nndarray\nNs.", "unhashable type: '_StandIn'"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "NEWOBJ"),
        (b"\x80\x04cnumpy\ndtype\n)}\x92.", "NEWOBJ_EX"),
        # What reaches outside the file.
        (b"\x80\x04K\x01K\x02\x93.", "STACK_GLOBAL requires str"),
        (b"Pabc\n.", "persistent"),
        (b"K\x01Q.", "persistent"),
        (b"\x80\x02\x82\x01.", "unregistered extension code 1"),
        (b"\x80\x05\x97.", "out-of-band"),
    ],
    ids=itertools.count(),
)
def test_bombs_and_tricks_are_refused(tmp_path, content, message):
    path = write(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        load_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path} must be a whole pickle of plain arrays")
    assert len(str(caught.value)) < 600
    assert peak < 2**24


@pytest.mark.parametrize("flags", [0, 63])
@pytest.mark.parametrize("code", [b"f8", b"O8"])
def test_the_flags_of_a_dtype_in_the_file_are_not_believed(tmp_path, code, flags):
    # With them NumPy would take bytes of the file for addresses of objects, or the reverse.
    state = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    dtype = DTYPE.replace(b"f4", code) + state
    content = array_of(b"K\x01\x85", dtype, b"C\x08" + struct.pack("<d", 1.5))
    if code == b"f8":
        assert same(np.array([1.5]), load(tmp_path, content))
    else:
        with pytest.raises(ValueError, match="other content than object"):
            load(tmp_path, content)
    objects = array_of(b"K\x01\x85", dtype, b"](K\x07e")
    if code == b"O8":
        assert same(np.array([7], object), load(tmp_path, objects))
    else:
        with pytest.raises(ValueError, match="other content than float64"):
            load(tmp_path, objects)


def test_the_table_stays_as_it_is(tmp_path):
    def look():
        return {n: (id(f), repr(getattr(f, "__dict__", ""))) for n, f in _pickle._TABLE.items()}

    before = look()
    for name in before:
        module, _, function = name.rpartition(".")
        for state in (b"}" + text("x") + b"K\x01s", b"N}" + text("__defaults__") + b")s\x86"):
            content = b"\x80\x02c" + f"{module}\n{function}\n".encode() + state + b"b."
            with pytest.raises(ValueError, match="object is not callable"):
                load(tmp_path, content)
    assert look() == before


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"]" * 20_000 + b"a" * 19_999 + b".", "RecursionError"),
        (b"}" + b"N}" * 20_000 + b"s" * 20_000 + b".", "RecursionError"),
    ],
)
def test_data_too_deep_is_a_clear_error(tmp_path, content, error):
    with pytest.raises(ValueError, match=f"must be a whole pickle .*, got {error}"):
        load(tmp_path, content)


def test_what_is_shared_takes_no_time_and_may_hold_itself(tmp_path):
    # 64 levels, of which each has the one below twice.
    value = load(tmp_path, b"K\x01" + b"2\x86" * 64 + b".")
    assert value[0] is value[1]
    (value,) = load(tmp_path, b"]q\x00h\x00\x85a.")
    assert value[0][0] is value
    value = load(
        tmp_path, b"\x80\x03" + EMPTY + b"q\x00(K\x01K\x01\x85" + OBJECT + b"\x89](h\x00etb."
    )
    assert value[0] is value


@pytest.mark.parametrize(
    "value",
    [
        [tuple(range(10_000)), set(range(10_000)), frozenset(map(str, range(10_000)))],
        functools.reduce(lambda inner, _: [inner], range(100), 1),
        functools.reduce(lambda inner, _: {"x": (inner,)}, range(50), np.ones(2)),
        [[0.5] * 200] * 200,
        [np.zeros(10_000, "<U5"), bytearray(50_000), bytes(50_000)],
    ],
    ids=["wide", "lists", "dicts", "shared", "compressible"],
)
@pytest.mark.parametrize("protocol", range(6))
def test_large_data_is_read(tmp_path, value, protocol):
    assert same(value, load(tmp_path, pickle.dumps(value, protocol)))


def test_a_cached_extension_is_refused(tmp_path):
    # Python keeps resolved extensions and hands them out without find_class.
    copyreg.add_extension("os", "getcwd", 250)
    try:
        pickle.loads(b"\x80\x02\x82\xfa.")
        with pytest.raises(ValueError, match=r"load_pickle refuses 'os\.getcwd'"):
            load(tmp_path, b"\x80\x02\x82\xfa)R.")
    finally:
        copyreg.remove_extension("os", "getcwd", 250)
        copyreg.clear_extension_cache()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a pickle, got an empty file: copy or download it again"),
        (b"not a pickle", "must be a whole pickle .* write or download it again"),
        (b"\x80\x04N", "got EOFError"),
        (b"cnumpy\nndarr", "pickle data was truncated"),
        (b"video,text,label\n1,good,2.0\n", "got UnpicklingError: invalid load key, 'v'"),
        (b"\x80\x63N.", "unsupported pickle protocol: 99"),
    ],
)
def test_damaged_files_name_the_file(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_pickle(path)
    assert str(caught.value).startswith(str(path))


def compressed(module):
    def make(path):
        with module.open(path, "wb") as file:
            pickle.dump({"x": np.arange(3)}, file)

    return make


def numpy_saved(save):
    def make(path):
        with path.open("wb") as file:
            save(file, np.arange(3))

    return make


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mosi.pkl", pickle.dumps([1]))


def content_of(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: torch.save(torch.ones(2), path), "a file of torch.save: torch.load"),
        (numpy_saved(np.savez), "a file of numpy.save: numpy.load"),
        (numpy_saved(np.savez_compressed), "a file of numpy.save: numpy.load"),
        (numpy_saved(np.save), "a file of numpy.save: numpy.load"),
        (zipped, "an archive, or compressed: unpack"),
        (compressed(gzip), "an archive, or compressed: unpack"),
        (compressed(bz2), "an archive, or compressed: unpack"),
        (compressed(lzma), "an archive, or compressed: unpack"),
        (content_of(b"7z\xbc\xaf'\x1c\0\4"), "an archive, or compressed: unpack"),
        (content_of(b"\x89HDF\r\n\x1a\n" + bytes(9)), "an HDF5 file"),
        (content_of(b"version https://git-lfs.github.com/spec/v1\noid"), "a pointer of git-LFS"),
        (content_of(b"\n <!DOCTYPE HTML>\n<html>Sign in"), "a web page"),
        (content_of(b"<html><body>Quota exceeded"), "a web page"),
        (content_of(b"<?xml version='1.0'?><Error>"), "a web page"),
    ],
    ids=itertools.count(),
)
def test_other_kinds_of_file_are_named(tmp_path, make, what):
    path = tmp_path / "mosi.pkl"
    make(path)
    with pytest.raises(ValueError, match=rf"mosi\.pkl must be a pickle, got {what}"):
        load_pickle(path)


@pytest.mark.parametrize("load_from", [str, Path])
def test_a_directory_is_an_os_error(tmp_path, load_from):
    with pytest.raises(IsADirectoryError) as caught:
        load_pickle(load_from(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_lack_of_memory_is_said_as_such(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(_pickle, "_real", fail)
    with pytest.raises(ValueError, match=r"file\.pkl must be a whole pickle .*, got MemoryError"):
        load(tmp_path, b"\x80\x04K\x01.")


def test_every_truncation_is_a_clear_error(tmp_path):
    content = pickle.dumps({"x": np.arange(3.0), "y": ["a", 1.5]}, 2)
    for end in range(1, len(content)):
        with pytest.raises(ValueError, match="must be a whole pickle"):
            load(tmp_path, content[:end])


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / "absent.pkl")


def test_what_follows_stop_is_not_read(tmp_path):
    buffer = io.BytesIO()
    pickle.dump([1], buffer)
    assert load(tmp_path, buffer.getvalue() + b"cos\nsystem\n") == [1]
