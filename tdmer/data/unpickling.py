"""A restricted unpickler: NumPy arrays and plain containers, and nothing that runs.

A pickle is a program. Three walls stand between it and the machine:

1. an interpreter of this module runs it, and knows only the opcodes that build data: none that
   reaches outside the file (persistent ids, the extension registry, buffers) or builds an object
   of a class. Sizes that the file cannot hold are refused before memory is reserved;
2. every global is looked up in a table by its name. What the table gives is never the NumPy or
   builtin object itself but a small function of this module that checks its arguments;
3. arrays and dtypes are stand-ins until the end, and become real only once their shape, dtype
   and number of bytes agree. NumPy never sees the state that the file declares.

Nor can plain data be shaped to harm. ``hash`` and ``==`` know no bound of depth or time: what a key
holds is counted before it is used. The value as a whole is shallow, does not hold itself, and is
not much larger than the file when what is shared is counted at each place.

What remains is in proportion to the file, save one. A byte of it may take two microseconds, and 250
bytes of memory (an empty set). Keys made to have equal hashes take time quadratic in their number:
over a minute for 1 MB. That keeps the process busy; it runs nothing.
"""

import codecs
import errno
import os
import pickle
import pickletools
import re
import struct
import sys
from collections.abc import Callable, Sequence, Sized
from io import BufferedReader
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Nothing in the file stands for each of these: bytes of an array along an axis of length 0, and
# the entries of what is shared, at each place but the first.
_LARGEST_UNFOLDED = 2**24
# Containers in containers: CPython and NumPy free, print and compare them by recursion.
_DEEPEST = 100
_TOO_DEEP = f"more than {_DEEPEST} containers in one another"
# Entries of a key, those of tuples in it too: they are walked through each time it is used.
_LARGEST_KEY = 100
# NumPy 2; NumPy 1 has 32.
_MOST_AXES = 64

_DTYPE = re.compile(r"[<>=|]?[biufcSUO][0-9]{0,9}")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

# First bytes of what is taken for a pickle by mistake, what it is, and how to mend it.
_ARRAYS = "and give the arrays to tdmer.data.from_arrays"
_OTHERS = [
    (re.compile(pattern, re.DOTALL), what, mend)
    for pattern, what, mend in (
        (
            rb"PK\x03\x04.{26}[^/]{1,100}/data\.pkl|\x80.\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.",
            "a file of torch.save",
            f"read it with torch.load(..., weights_only=True) {_ARRAYS}",
        ),
        (
            rb"PK\x03\x04.{26}[^\0]{1,100}\.npy",
            "a NumPy .npz archive",
            f"read it with numpy.load {_ARRAYS}",
        ),
        (
            rb"PK(\x03\x04|\x05\x06)|7z\xbc\xaf'\x1c|Rar!\x1a\x07|.{257}ustar",
            "an archive",
            "unpack it and name the file in it",
        ),
        (rb"\x93NUMPY", "a NumPy .npy file", f"read it with numpy.load {_ARRAYS}"),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5, .csd)", f"read it with h5py {_ARRAYS}"),
        (rb"MATLAB 5\.0", "a MATLAB file", f"read it with scipy.io.loadmat {_ARRAYS}"),
        (rb"\x1f\x8b", "compressed with gzip", "decompress it first (gunzip)"),
        (rb"BZh[1-9]1AY&SY", "compressed with bzip2", "decompress it first (bunzip2)"),
        (rb"\xfd7zXZ\0", "compressed with xz", "decompress it first (unxz)"),
        (rb"\x28\xb5\x2f\xfd", "compressed with Zstandard", "decompress it first (unzstd)"),
        (rb"\x04\x22\x4d\x18", "compressed with LZ4", "decompress it first (unlz4)"),
        (
            rb".{4}\0{4}\{\"",
            "a safetensors file",
            f"read it with safetensors.numpy.load_file {_ARRAYS}",
        ),
        (rb"PAR1", "a Parquet file", f"read it with pandas.read_parquet {_ARRAYS}"),
        (
            rb"ARROW1|\xff{4}.{3}\0\x10\0\0\0",
            "an Arrow file",
            f"read it with Hugging Face datasets {_ARRAYS}",
        ),
        (
            rb"version https://git-lfs",
            "a pointer of git-LFS instead of the file",
            "fetch the file with git lfs pull",
        ),
        (
            rb"(?i:\s*<(!doctype|html|\?xml))",
            "a web page instead of the file",
            "open it to see what the download asks for (a login, a confirmation), and "
            "download the file again",
        ),
    )
]
_DAMAGED = "it is damaged or no pickle of plain data: copy or download it again"
_TEXT = (
    "it seems to be text (CSV, JSON, or a damaged pickle of protocol 0): read it with pandas or "
    f"json {_ARRAYS}"
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")

# Width in bytes and sign of the count in front of an argument.
_COUNTS = {
    pickletools.TAKEN_FROM_ARGUMENT1: (1, False),
    pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, False),
}


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of NumPy arrays and plain containers without running code from it.

    Allowed are None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set and
    frozenset; ``OrderedDict`` and ``defaultdict`` (read as dict); NumPy arrays, scalars and dtypes
    of booleans, numbers, strings and (arrays only) objects from this list, written by NumPy 1 or 2.
    Any protocol and Python 2 pickles are read; text of Python 2 as Latin-1.

    Arrays of numbers and strings are read-only views of the bytes of the file's content, so that
    they are not held twice: copy before writing.

    Args:
        path: the file.

    Returns:
        The object in the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file names anything else (the message shows the name); declares sizes that
            it cannot hold; nests deeper than 100 levels, holds itself, or has a key of more than
            100 entries; is no whole pickle, or another kind of file (the message says which).

    Example:
        >>> import os, pickle, tempfile
        >>> class Evil:
        ...     def __reduce__(self):
        ...         return os.getcwd, ()
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     pickle.dump({"x": Evil()}, file)
        ...     file.flush()
        ...     try:
        ...         load_pickle(file.name)
        ...     except ValueError as error:
        ...         print(str(error).replace(file.name, "FILE"))
        FILE must hold NumPy arrays and plain containers only: load_pickle refuses 'posix.getcwd', \
which could run code; save the data as plain arrays, lists and dicts, and do not open \
the file by other means unless you trust its origin
    """
    name = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(
            errno.EISDIR, "must be a file, got a directory: name the file", name
        )
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ValueError(
                f"{name} must be a pickle, got an empty file: copy or download it again"
            )
        head = file.read(512)
        for first, what, mend in _OTHERS:
            if first.match(head):
                raise ValueError(f"{name} must be a pickle, got {what}: {mend}")
        file.seek(0)
        try:
            value = _Interpreter(file, size).run()
            return _Finish(size).real(value)[0]
        except _RefusedError as error:
            raise ValueError(
                f"{name} must hold NumPy arrays and plain containers only: load_pickle refuses "
                f"{error}"
            ) from None
        except MemoryError:
            raise MemoryError(f"{name} needs more memory than there is for {size} bytes") from None
        # A damaged pickle can raise anything at all, and quote itself at any length.
        except Exception as error:
            raise ValueError(
                f"{name} must be a whole pickle, got one that fails before byte {file.tell()} of "
                f"{size} with {type(error).__name__}: {str(error)[:200]}; "
                f"{_TEXT if _is_text(head) else _DAMAGED}"
            ) from error


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not _CONTROL.search(text)


class _RefusedError(Exception):
    """What the file asks for is not data, or is larger than the file can hold."""


class _Budget:
    """The content that stand-ins may still take in one file.

    A memo can name one long text a thousand times: without a limit a small file fills the memory.
    """

    def __init__(self, left: int) -> None:
        self._left = left

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise _RefusedError("content repeated to more than the size of the file")


def _integer(line: bytes) -> int:
    # Protocols 0 and 1 write booleans so.
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _unsigned(raw: bytes | bytearray) -> int:
    return int.from_bytes(raw, "little")


def _latin_1(raw: bytes) -> str:
    return raw.decode("latin1")


def _utf_8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise pickle.UnpicklingError("STRING is not in quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


# Opcodes that push a value, which they make of the bytes of their argument.
_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "INT": _integer,
    "LONG": lambda line: int(line.removesuffix(b"L")),
    "BININT1": _unsigned,
    "BININT2": _unsigned,
    "BININT": _signed,
    "LONG1": _signed,
    "LONG4": _signed,
    "FLOAT": float,
    "BINFLOAT": lambda raw: struct.unpack(">d", raw)[0],
    "STRING": _quoted,
    "SHORT_BINSTRING": _latin_1,
    "BINSTRING": _latin_1,
    "UNICODE": lambda line: line.decode("raw-unicode-escape"),
    "SHORT_BINUNICODE": _utf_8,
    "BINUNICODE": _utf_8,
    "BINUNICODE8": _utf_8,
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), lambda raw: raw),
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: set(),
}


# Code → name; bytes of its argument, or one of pickletools' negative kinds; and what it pushes.
_OPCODES = {
    opcode.code.encode("latin1"): (
        opcode.name,
        opcode.arg.n if opcode.arg else 0,
        _VALUES.get(opcode.name),
    )
    for opcode in pickletools.opcodes
}


class _Interpreter:
    """Runs the opcodes that build data, and no other.

    Not left to :class:`pickle.Unpickler`: it reserves memory for declared sizes before it looks
    whether the file holds as much, takes cached extensions without asking, sets attributes, and
    hashes keys without a bound.
    """

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file = file
        self._size = size
        self._stack: list[Any] = []
        # The stacks below each mark.
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        # Twice: protocols 0 to 2 write text that becomes bytes, and these become an array.
        self._budget = _Budget(2 * size)

    def run(self) -> Any:
        """Return the value on the stack at STOP."""
        read = self._file.read
        name = "the file"
        try:
            while code := read(1):
                if code not in _OPCODES:
                    raise pickle.UnpicklingError(f"no opcode {code!r}")
                name, kind, value = _OPCODES[code]
                argument = read(kind) if kind >= 0 else self._argument(name, kind)
                if len(argument) < kind:
                    raise EOFError(f"the file ends inside {name}")
                if value is not None:
                    self._stack.append(value(argument))
                elif name == "STOP":
                    return self._stack.pop()
                else:
                    self._step(name, argument)
        except (IndexError, KeyError):
            raise pickle.UnpicklingError(f"{name} asks for what is not there") from None
        raise EOFError("the file ends before STOP")

    def _argument(self, name: str, kind: int) -> bytes | bytearray:
        """Read an argument of a length that is not fixed."""
        if kind == pickletools.UP_TO_NEWLINE:
            # A module and a name, or one line.
            lines = [self._file.readline() for _ in range(2 if name in ("GLOBAL", "INST") else 1)]
            if not lines[-1].endswith(b"\n"):
                raise EOFError(f"the file ends inside {name}")
            return b"".join(lines)[:-1]
        width, signed = _COUNTS[kind]
        count = int.from_bytes(self._file.read(width), "little", signed=signed)
        if count < 0:
            raise pickle.UnpicklingError(f"{name} declares {count} bytes")
        if count <= self._size and name == "BYTEARRAY8":
            # Filled where it stays: an array on it is not held twice.
            content = bytearray(count)
            if self._file.readinto(content) == count:
                return content
        elif count <= self._size:
            argument = self._file.read(count)
            if len(argument) == count:
                return argument
        raise EOFError(f"the file ends inside {name}")

    def _since_mark(self) -> list[Any]:
        """Return what was pushed since the last mark, and go back to the stack below."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _step(self, name: str, argument: bytes | bytearray) -> None:
        """Run an opcode that does more than push its argument."""
        stack = self._stack
        match name:
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "LONG_BINPUT" | "BINPUT":
                self._memo[_unsigned(argument)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[_unsigned(argument)])
            case "PUT":
                self._memo[int(argument)] = stack[-1]
            case "GET":
                stack.append(self._memo[int(argument)])
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                first = len(stack) - int(name[-1])
                if first < 0:
                    raise IndexError
                stack[first:] = [tuple(stack[first:])]
            case "TUPLE":
                items = self._since_mark()
                self._stack.append(tuple(items))
            case "LIST":
                items = self._since_mark()
                self._stack.append(items)
            case "DICT":
                items = self._since_mark()
                self._stack.append({})
                self._set_items(items)
            case "FROZENSET":
                items = self._since_mark()
                self._stack.append(frozenset(map(_key, items)))
            case "APPEND":
                entry = stack.pop()
                self._top(name, list).append(entry)
            case "APPENDS":
                items = self._since_mark()
                self._top(name, list).extend(items)
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                self._set_items(items)
            case "SETITEMS":
                items = self._since_mark()
                self._set_items(items)
            case "ADDITEMS":
                items = self._since_mark()
                self._top(name, set).update(map(_key, items))
            case "GLOBAL" | "INST":
                module, _, function = argument.decode().partition("\n")
                stack.append(self._global(module, function))
                if name == "INST":
                    raise pickle.UnpicklingError("INST builds an object of a class")
            case "STACK_GLOBAL":
                function, module = stack.pop(), stack.pop()
                stack.append(self._global(module, function))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _Global) or not isinstance(arguments, tuple):
                    raise _RefusedError(f"to call {type(function).__name__}, which is no function")
                stack.append(function(*arguments))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], _StandIn):
                    raise _RefusedError(f"a state for {type(stack[-1]).__name__}")
                stack[-1].set_state(state)
            case "POP":
                # Directly above a mark it takes the mark.
                self._since_mark() if self._below and not stack else stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO":
                if argument[0] > 5:
                    raise pickle.UnpicklingError(f"pickle protocol {argument[0]}, which is unknown")
            case "FRAME":
                # Frames only help to read ahead.
                if _unsigned(argument) > self._size:
                    raise EOFError("the file ends inside a frame")
            case _:
                raise pickle.UnpicklingError(
                    f"the opcode {name} reaches outside the file or builds an object of a class"
                )

    def _top(self, name: str, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise pickle.UnpicklingError(f"{name} on {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        """Put keys and values, one after the other, into the dict on top of the stack."""
        if len(items) % 2:
            raise pickle.UnpicklingError("a dict with a key that has no value")
        self._top("SETITEMS", dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _global(self, module: Any, name: Any) -> Any:
        """Return the stand-in for a global."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise _RefusedError("a global whose name is no text")
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            # So begins many a text that is no pickle.
            if not _NAME.fullmatch(full):
                raise pickle.UnpicklingError(f"{full[:100]!r} is no name")
            raise _RefusedError(
                f"{full[:100]!r}, which could run code; save the data as plain arrays, lists and "
                "dicts, and do not open the file by other means unless you trust its origin"
            )
        function = _ALLOWED[full]
        return _Name() if function is None else _Global(function, self._budget)


def _key(value: Any) -> Any:
    """Return the value if to hash and to compare it is little work."""
    left = _LARGEST_KEY
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, (tuple, frozenset)):
            left -= len(part)
        elif isinstance(part, (str, bytes)):
            # An entry's time, and that is true of the digits of a number too.
            left -= len(part) >> 8
        elif isinstance(part, int):
            left -= part.bit_length() >> 11
        elif part is not None and not isinstance(part, (float, complex, np.generic)):
            raise _RefusedError(f"a key or set entry that holds {type(part).__name__}")
        if left < 0:
            raise _RefusedError(f"a key or set entry of more than {_LARGEST_KEY} entries")
        if isinstance(part, (tuple, frozenset)):
            parts.extend(part)
    return value


class _StandIn:
    """A base of what a pickle may hold on to while it is read."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        """Take the state that the file declares (opcode BUILD), once it is checked."""
        raise _RefusedError(f"a state for {type(self).__name__}")


class _Name(_StandIn):
    """A global that a file may name as an argument, but not call."""

    __slots__ = ()


class _Global(_StandIn):
    """A global of the table: called with the arguments in the file."""

    __slots__ = ("_budget", "_function")

    def __init__(self, function: Callable[..., Any], budget: _Budget) -> None:
        self._function = function
        self._budget = budget

    def __call__(self, *args: Any) -> Any:
        return self._function(self._budget, *args)


class _Dtype(_StandIn):
    """A dtype: built from its code, its byte order from the state that follows."""

    __slots__ = ("dtype",)

    def __init__(self, budget: _Budget, code: Any, align: Any = None, copy: Any = None) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            got = repr(code[:20]) if isinstance(code, str) else type(code).__name__
            raise _RefusedError(f"the dtype {got}: numbers, strings and objects only")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        _version, order, subdtype, names, fields, *_ = _state(state)
        if (subdtype, names, fields) != (None, None, None) or order not in tuple("<>=|"):
            raise _RefusedError("a dtype with fields: numbers, strings and objects only")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(_StandIn):
    """An array: empty until the state that follows."""

    __slots__ = ("_budget", "entries", "shape", "values")

    def __init__(self, budget: _Budget, kind: Any = None, shape: Any = None, code: Any = None):
        self._budget = budget
        self.values: NDArray[Any] | None = None
        # Those of an array of objects, which stay here until they are real themselves.
        self.entries: list[Any] | None = None
        self.shape: tuple[int, ...] = ()

    def set_state(self, state: Any) -> None:
        *_, shape, dtype, fortran, content = _state(state)
        if isinstance(dtype, _Dtype) and dtype.dtype.kind == "O":
            # NumPy writes objects row by row whatever their order in memory.
            _check_content(self._budget, content, (list,), 1, dtype, shape)
            self.entries, self.shape = list(content), shape
        else:
            self.values = _numbers(self._budget, content, dtype, shape, "F" if fortran else "C")


def _state(state: Any) -> tuple[Any, ...]:
    # A long one, shared, would be walked through once for each array.
    if not isinstance(state, tuple) or len(state) > 9:
        raise _RefusedError("a state that is no short tuple")
    return state


def _check_content(
    budget: _Budget,
    content: Any,
    kinds: tuple[type[Sized], ...],
    width: int,
    dtype: _Dtype,
    shape: Any,
) -> None:
    """Raise unless the content is of these types, and as long as the shape and width say."""
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_AXES
        or not all(type(n) is int and 0 <= n < 2**63 for n in shape)
    ):
        raise _RefusedError("an array whose shape is not whole numbers, 64 at most")
    if 0 in shape and prod(n for n in shape if n) * width > _LARGEST_UNFOLDED:
        raise _RefusedError(f"the array shape {shape}, too large for an array without entries")
    if not isinstance(content, kinds):
        raise _RefusedError(f"{dtype.dtype} array content of type {type(content).__name__}")
    if width == 0 or len(content) != prod(shape) * width:
        unit = "objects" if kinds == (list,) else "bytes"
        raise _RefusedError(
            f"{len(content)} {unit} for an array of shape {shape} and dtype {dtype.dtype}"
        )
    budget.spend(len(content))


def _numbers(
    budget: _Budget, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> NDArray[Any]:
    """Return an array of numbers or strings as a view of its content."""
    if not isinstance(dtype, _Dtype):
        raise _RefusedError(f"an array whose dtype is {type(dtype).__name__}")
    real = dtype.dtype
    if real.kind == "O":
        raise _RefusedError("a scalar or buffer of objects")
    _check_content(budget, content, (bytes, bytearray, str), real.itemsize, dtype, shape)
    # Python 2 wrote bytes as text.
    raw: Any = content.encode("latin1") if isinstance(content, str) else content
    array = np.frombuffer(raw, real)
    # NumPy keeps any number as a character; Python fails once it becomes text.
    codes = np.dtype("u4").newbyteorder(real.byteorder)
    if real.kind == "U" and np.frombuffer(raw, codes).max(initial=0) > sys.maxunicode:
        raise _RefusedError("an array of text with numbers that are no characters")
    array.flags.writeable = False
    # NumPy's "K": the axes are put in order after the array has its shape.
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _frombuffer(budget: _Budget, *args: Any) -> _Array:
    array = _Array(budget)
    array.values = _numbers(budget, *args)
    return array


def _scalar(budget: _Budget, dtype: Any, content: Any) -> Any:
    return _numbers(budget, content, dtype, (1,), "C")[0]


def _encode(budget: _Budget, text: Any, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError("'_codecs.encode' of other than text to Latin-1")
    budget.spend(len(text))
    return text.encode("latin1")


def _bytes(budget: _Budget, *args: Any) -> bytes:
    # Protocols 0 to 2 write b"" so; a number would reserve as many bytes.
    if args:
        raise _RefusedError("'bytes' with an argument")
    return b""


def _bytearray(budget: _Budget, content: Any = b"", encoding: Any = "latin1") -> bytearray:
    if isinstance(content, str):
        content = _encode(budget, content, encoding)
    # A number would reserve as many bytes.
    if not isinstance(content, bytes):
        raise _RefusedError(f"'bytearray' of {type(content).__name__}")
    budget.spend(len(content))
    return bytearray(content)


def _complex(budget: _Budget, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise _RefusedError("'complex' of other than floats")
    return complex(real, imaginary)


def _entries(budget: _Budget, content: Any) -> Sequence[Any]:
    if not isinstance(content, (list, tuple)):
        raise _RefusedError(f"a container of {type(content).__name__}")
    budget.spend(len(content))
    return content


def _set(budget: _Budget, content: Any = ()) -> set[Any]:
    return set(map(_key, _entries(budget, content)))


def _frozenset(budget: _Budget, content: Any = ()) -> frozenset[Any]:
    return frozenset(map(_key, _entries(budget, content)))


def _ordered_dict(budget: _Budget, content: Any = ()) -> dict[Any, Any]:
    # Python 2 wrote lists of keys and values.
    return {_key(key): value for key, value in _entries(budget, content)}


def _defaultdict(budget: _Budget, factory: Any = None) -> dict[Any, Any]:
    return {}


_NUMPY: dict[str, Callable[..., Any] | None] = {
    "multiarray._reconstruct": _Array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
_BUILTINS: dict[str, Callable[..., Any] | None] = {
    "bytearray": _bytearray,
    "bytes": _bytes,
    "complex": _complex,
    "set": _set,
    "frozenset": _frozenset,
    # Factories of a defaultdict.
    **dict.fromkeys(("bool", "dict", "float", "int", "list", "str", "tuple")),
}
# None: a name that may be an argument, but is not called.
_ALLOWED: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _defaultdict,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED |= {f"{_core}.{_name}": _function for _name, _function in _NUMPY.items()}
for _module in ("builtins", "__builtin__"):
    _ALLOWED |= {f"{_module}.{_name}": _function for _name, _function in _BUILTINS.items()}


class _Finish:
    """Makes the stand-ins in a value real; its lists and dicts change in place."""

    def __init__(self, size: int) -> None:
        self._most = max(_LARGEST_UNFOLDED, 16 * size)
        # By address, since a pickle shares objects; None while one is walked through.
        self._seen: dict[int, tuple[Any, int, int] | None] = {}

    def real(self, value: Any, depth: int = 0) -> tuple[Any, int, int]:
        """Return the value without stand-ins, its levels, and how many entries it unfolds to."""
        if isinstance(value, _Dtype):
            return value.dtype, 0, 1
        if isinstance(value, _Array) and value.entries is None:
            if value.values is None:
                raise _RefusedError("an array without content")
            return value.values, 0, 1
        if isinstance(value, (_Name, _Global)):
            raise _RefusedError("a function among the data")
        if not isinstance(value, _HOLDERS):
            return value, 0, 1
        if id(value) not in self._seen:
            self._seen[id(value)] = None
            self._seen[id(value)] = self._walk(value, depth)
        found = self._seen[id(value)]
        if found is None:
            raise _RefusedError("a container that holds itself")
        if depth + found[1] > _DEEPEST:
            raise _RefusedError(_TOO_DEEP)
        return found

    def _walk(self, value: Any, depth: int) -> tuple[Any, int, int]:
        if depth == _DEEPEST:
            raise _RefusedError(_TOO_DEEP)
        below: Any = value.entries if isinstance(value, _Array) else value
        entries = list(below.values() if isinstance(below, dict) else below)
        levels, total = 0, 1 + len(entries)
        for place, entry in enumerate(entries):
            if isinstance(entry, _HOLDERS):
                entries[place], deep, count = self.real(entry, depth + 1)
                levels = max(levels, deep)
                total += count
        if total > self._most:
            raise _RefusedError(f"shared content that unfolds to more than {self._most} entries")
        if isinstance(value, _Array):
            value = np.fromiter(entries, object, len(entries)).reshape(value.shape)
        elif isinstance(value, tuple):
            value = tuple(entries)
        elif isinstance(value, list):
            value[:] = entries
        else:
            value.update(zip(value, entries, strict=True))
        return value, levels + 1, total


_HOLDERS = (list, tuple, dict, _StandIn)
