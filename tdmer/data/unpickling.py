"""A restricted unpickler: NumPy arrays and plain containers, and nothing that runs.

A pickle is a program. Three walls stand between it and the machine:

1. the opcodes are read through once before any runs: those that reach outside the file
   (persistent ids, the extension registry, buffers) and sizes that the file cannot hold are
   refused;
2. every global is looked up in a table by its name. What the table gives is never the NumPy or
   builtin object itself but a small function of this module that checks its arguments;
3. arrays and dtypes are stand-ins until the end, and become real only once their shape, dtype
   and number of bytes agree. NumPy never sees the state that the file declares.

What remains are keys: tuples nested a hundred thousand deep, or shared on every level, as a
dictionary key keep ``hash`` busy or overflow its stack. That ends the process; it runs nothing.
"""

import mmap
import os
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable
from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Dimensions of an array without entries cost nothing to declare but much to walk through.
_LARGEST_EMPTY = 2**24

_DTYPE = re.compile(r"[<>=|]?[biufcSUO][0-9]{0,9}")

_REFUSED_OPCODES = {
    "PERSID",
    "BINPERSID",
    "EXT1",
    "EXT2",
    "EXT4",
    "NEXT_BUFFER",
    "READONLY_BUFFER",
}

# Code → name and kind of argument: a number of bytes, or one of pickletools' negative codes.
_OPCODES = {
    ord(opcode.code): (opcode.name, opcode.arg.n if opcode.arg else 0)
    for opcode in pickletools.opcodes
}

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
        ValueError: the file names anything else (the message shows the name), declares sizes that
            it cannot hold, or is no whole pickle.

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
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError(f"{name} must be a pickle, got an empty file")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                _scan(view)
                size = len(view)
            return _real(_Unpickler(file, size).load(), {})
        except _RefusedError as error:
            raise ValueError(
                f"{name} must hold NumPy arrays and plain containers only: load_pickle refuses "
                f"{error}"
            ) from None
        # A damaged pickle can raise anything at all.
        except Exception as error:
            raise ValueError(
                f"{name} must be a whole pickle, got one that fails with "
                f"{type(error).__name__}: {error}"
            ) from error


class _RefusedError(Exception):
    """What the file asks for is not data, or is larger than the file can hold."""


def _scan(view: mmap.mmap) -> None:
    """Walk over the opcodes without running them, up to STOP.

    Not left to the unpickler, because its C code reserves memory for declared sizes and memo
    indices before it looks whether the file holds as much, and takes cached extensions without
    asking :meth:`find_class`.
    """
    size, at = len(view), 0
    while at < size:
        start = at
        if view[at] not in _OPCODES:
            raise pickle.UnpicklingError(f"no opcode {view[at : at + 1]!r} at byte {at}")
        name, kind = _OPCODES[view[at]]
        at += 1
        if name == "STOP":
            return
        if name in _REFUSED_OPCODES:
            raise _RefusedError(f"the opcode {name}, which reaches outside the file")
        if kind >= 0:
            at += kind
        elif kind == pickletools.UP_TO_NEWLINE:
            for _ in range(2 if name in ("GLOBAL", "INST") else 1):
                at = view.find(b"\n", at) + 1
                if at == 0:
                    raise EOFError(f"the file ends inside {name}")
        else:
            width, signed = _COUNTS[kind]
            count = int.from_bytes(view[at : at + width], "little", signed=signed)
            if count < 0:
                raise pickle.UnpicklingError(f"{name} declares {count} bytes")
            at += width + count
        if at > size:
            raise EOFError(f"the file ends inside {name}")
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            argument = view[start + 1 : at]
            index = int(argument) if name == "PUT" else int.from_bytes(argument, "little")
            # A pickler counts its memo up from 0, one at a time.
            if index > start:
                raise _RefusedError(f"the memo index {index}, more than the file can fill")
        elif name == "FRAME" and int.from_bytes(view[start + 1 : at], "little") > size - at:
            raise EOFError("the file ends inside a frame")
    raise EOFError("the file ends before STOP")


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


class _Unpickler(pickle.Unpickler):
    """Looks every name up in the table of this module."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="latin1")
        # Twice: protocols 0 to 2 write text that becomes bytes, and these become an array.
        self._budget = _Budget(2 * size)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global."""
        if f"{module}.{name}" not in _ALLOWED:
            raise _RefusedError(
                f"'{module}.{name}', which could run code; save the data as plain arrays, lists "
                "and dicts, and do not open the file by other means unless you trust its origin"
            )
        function = _ALLOWED[f"{module}.{name}"]
        return _Name() if function is None else _Global(function, self._budget)


class _StandIn:
    """A base of what a pickle may hold on to while it is read.

    Unhashable, so that it never hides in a set or a key; and a state from the file (opcode BUILD)
    is refused unless a subclass checks it, so that a file cannot write attributes.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        raise TypeError(f"unhashable type: {type(self).__name__}")

    def __setstate__(self, state: Any) -> None:
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

    def __init__(self, budget: _Budget, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise _RefusedError(f"the dtype {code!r}: numbers, strings and objects only")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _version, order, subdtype, names, fields, *_ = state
        if (subdtype, names, fields) != (None, None, None) or order not in tuple("<>=|"):
            raise _RefusedError("a dtype with fields: numbers, strings and objects only")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(_StandIn):
    """An array: empty until the state that follows."""

    __slots__ = ("_budget", "array")

    def __init__(self, budget: _Budget, *_: Any) -> None:
        self._budget = budget
        self.array: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, fortran, content = state
        self.array = _array(self._budget, content, dtype, shape, "F" if fortran else "C")


def _array(
    budget: _Budget, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> NDArray[Any]:
    """Return an array once its content is as long as its shape and dtype say."""
    if not isinstance(dtype, _Dtype):
        raise _RefusedError(f"an array whose dtype is {type(dtype).__name__}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError("an array whose shape is not whole numbers")
    if 0 in shape and prod(n for n in shape if n) > _LARGEST_EMPTY:
        raise _RefusedError(f"the array shape {shape}, too large for an array without entries")
    real = dtype.dtype
    objects = real.kind == "O"
    if not isinstance(content, list if objects else (bytes, bytearray, str)):
        raise _RefusedError(f"{real} array content of type {type(content).__name__}")
    if real.itemsize == 0 or len(content) != prod(shape) * (1 if objects else real.itemsize):
        unit = "objects" if objects else "bytes"
        raise _RefusedError(f"{len(content)} {unit} for an array of shape {shape} and dtype {real}")
    budget.spend(len(content))
    if objects:
        array = np.empty(len(content), object)
        array[:] = content
        # NumPy writes objects row by row whatever their order in memory.
        return array.reshape(shape)
    # Python 2 wrote bytes as text.
    raw: Any = content.encode("latin1") if isinstance(content, str) else content
    array = np.frombuffer(raw, real)
    array.flags.writeable = False
    # NumPy's "K": the axes are put in order after the array has its shape.
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _scalar(budget: _Budget, dtype: Any, content: Any) -> Any:
    if isinstance(dtype, _Dtype) and dtype.dtype.kind == "O":
        raise _RefusedError("a scalar of objects")
    return _array(budget, content, dtype, (1,), "C")[0]


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


def _entries(budget: _Budget, content: Any) -> Any:
    if not isinstance(content, (list, tuple)):
        raise _RefusedError(f"a container of {type(content).__name__}")
    budget.spend(len(content))
    return content


def _set(budget: _Budget, content: Any = ()) -> set[Any]:
    return set(_entries(budget, content))


def _frozenset(budget: _Budget, content: Any = ()) -> frozenset[Any]:
    return frozenset(_entries(budget, content))


def _ordered_dict(budget: _Budget, content: Any = ()) -> dict[Any, Any]:
    return dict(_entries(budget, content))


def _defaultdict(budget: _Budget, *factory: Any) -> dict[Any, Any]:
    return {}


_NUMPY: dict[str, Callable[..., Any] | None] = {
    "multiarray._reconstruct": _Array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _array,
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


def _real(value: Any, seen: dict[int, Any]) -> Any:
    """Return the value without stand-ins; lists, dicts and arrays of objects change in place.

    ``seen`` keeps what was met by its address, since a pickle shares objects and may be cyclic.
    """
    if isinstance(value, _Array):
        value = value.array
    elif isinstance(value, _Dtype):
        return value.dtype
    elif isinstance(value, _StandIn):
        raise _RefusedError("a function among the data")
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, tuple):
        seen[id(value)] = tuple(_real(entry, seen) for entry in value)
        return seen[id(value)]
    if isinstance(value, dict):
        places: Iterable[tuple[Any, Any]] = list(value.items())
        target: Any = value
    elif isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        target = value if isinstance(value, list) else value.reshape(-1)
        places = enumerate(target)
    else:
        return value
    seen[id(value)] = value
    for place, entry in places:
        target[place] = _real(entry, seen)
    return value
