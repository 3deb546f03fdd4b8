"""A restricted unpickler: NumPy arrays and plain containers, and nothing that runs.

A pickle is a program. Python's own unpickler runs it here, with two walls around it:

1. every global is looked up in a table by its name. What the table gives is a stand-in for a small
   function of this module that checks its arguments, never the NumPy or builtin object itself: the
   file can call it, and do nothing else to it;
2. arrays and dtypes are stand-ins, too, and become real only once their shape, dtype and number of
   bytes agree. NumPy never sees the state that the file declares.

So no code of the file's choice runs, no memory is read that was not written, and no size that a
file declares is reserved for an array. What a file can still do is to use up time or memory, by
what it repeats or by values that are deep, hold themselves or collide, even until the system ends
the process.
"""

import copyreg
import os
import pickle
import re
from math import prod
from typing import Any

import numpy as np

from tdmer.data.readers._kinds import check_kind


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
        ValueError: the file names anything else (the message shows the name), is no whole pickle,
            needs more memory than there is, nests too deeply, or is another kind of file (the
            message says which).

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
        FILE must be a whole pickle of plain arrays, lists and dicts, got UnpicklingError: \
load_pickle refuses 'posix.getcwd', which could run code: do not open the file by other means \
unless you trust its origin; write or download it again
    """
    # Python keeps resolved extensions and hands them out without asking find_class.
    copyreg.clear_extension_cache()
    with open(path, "rb") as file:
        check_kind(path, file)
        try:
            return _real(_Unpickler(file, encoding="latin1").load(), {})
        # A damaged pickle can raise anything at all, and quote itself at any length.
        except Exception as error:
            raise ValueError(
                f"{path} must be a whole pickle of plain arrays, lists and dicts, got "
                f"{type(error).__name__}: {str(error)[:300]}; write or download it again"
            ) from error


class _Unpickler(pickle.Unpickler):
    """Python's unpickler with a table of names."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for what the table has under the name."""
        full = f"{module}.{name}"
        if full not in _TABLE:
            raise pickle.UnpicklingError(
                f"load_pickle refuses {full[:100]!r}, which could run code: do not open the file "
                "by other means unless you trust its origin"
            )
        return _StandIn(call=_TABLE[full])


class _StandIn:
    """What the file holds on to while it is read: a function, a dtype or an array.

    It can be called, and given a state, only where there is a function for that; it is no key.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any = None, call: Any = None, build: Any = None) -> None:
        self.value, self.call, self.build = value, call, build

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __setstate__(self, state: Any) -> None:
        self.value = self.build(*state)


def _dtype(code: str, *_: Any) -> _StandIn:
    if not re.fullmatch("[<>=|]?[biufcSUO][0-9]{0,9}", code):
        raise pickle.UnpicklingError("a dtype of other than numbers, strings and objects")
    # Of the state only the byte order counts; its fields, sizes and flags could do harm.
    return _StandIn(np.dtype(code), build=lambda _, order, *__: np.dtype(code).newbyteorder(order))


def _array(content: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> Any:
    """Return an array as a view of its bytes, or one that holds the objects of a list."""
    # Python 2 wrote bytes as text.
    content = content.encode("latin1") if isinstance(content, str) else content
    kinds: Any = list if dtype.value.kind == "O" else (bytes, bytearray)
    width = 1 if kinds is list else dtype.value.itemsize
    if not isinstance(content, kinds) or len(content) != prod(map(int.__index__, shape)) * width:
        raise pickle.UnpicklingError(f"other content than {dtype.value} of the shape {shape!r:.50}")
    if kinds is list:
        # NumPy writes objects row by row whatever their order in memory.
        return np.fromiter(content, object, len(content)).reshape(shape)
    array = np.frombuffer(content, dtype.value)
    array.flags.writeable = False
    return array.reshape(shape).transpose(axes) if axes else array.reshape(shape, order=order)


def _bytes(text: str, encoding: str) -> bytes:
    # Another codec would be imported.
    return text.encode({"latin1": "latin1", "latin-1": "latin1"}[encoding])


def _bytearray(content: Any = b"", *encoding: str) -> bytearray:
    # There is no view of a number, of which bytearray would reserve as many bytes.
    return bytearray(memoryview(_bytes(content, *encoding) if encoding else content))


# None: a name that may be an argument, but is not called.
_TABLE: dict[str, Any] = {
    "numpy.ndarray": None,
    "numpy.dtype": _dtype,
    "_codecs.encode": _bytes,
    # Those that take no size may be what they are, here and below.
    "collections.OrderedDict": dict,
    "collections.defaultdict": lambda factory=None: {},
}
for _core in ("numpy.core", "numpy._core"):
    _TABLE[f"{_core}.multiarray._reconstruct"] = lambda *_: _StandIn(
        build=lambda _, shape, dtype, fortran, raw: _array(raw, dtype, shape, "CF"[fortran])
    )
    _TABLE[f"{_core}.multiarray.scalar"] = lambda dtype, content: _array(content, dtype, ())[()]
    _TABLE[f"{_core}.numeric._frombuffer"] = lambda *args: _StandIn(_array(*args))
for _module in ("builtins", "__builtin__"):
    # First the factories of a defaultdict.
    _TABLE |= {f"{_module}.{k.__name__}": None for k in (bool, dict, float, int, list, str, tuple)}
    _TABLE |= {f"{_module}.{k.__name__}": k for k in (complex, set, frozenset)}
    _TABLE |= {f"{_module}.bytes": lambda: b"", f"{_module}.bytearray": _bytearray}


def _real(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """Return the value with arrays for stand-ins; lists, dicts and what is shared stay the same."""
    if not isinstance(value, (_StandIn, list, tuple, dict)):
        return value
    if id(value) not in seen:
        real = value.value if isinstance(value, _StandIn) else value
        if real is None:
            raise pickle.UnpicklingError("a function or an array without content among the data")
        # Both are kept, so that no other object gets the address.
        seen[id(value)] = value, real
        if isinstance(real, tuple):
            seen[id(value)] = value, tuple([_real(entry, seen) for entry in real])
        elif isinstance(real, dict):
            real.update([(key, _real(entry, seen)) for key, entry in real.items()])
        elif isinstance(real, list):
            real[:] = [_real(entry, seen) for entry in real]
        elif isinstance(real, np.ndarray) and real.dtype.kind == "O":
            real.reshape(-1)[:] = np.fromiter([_real(x, seen) for x in real.flat], object)
    return seen[id(value)][1]
