"""Pickles as Python 2 and its NumPy wrote them: protocol 2, text and arrays as byte strings."""

import struct
from typing import Any

import numpy as np


def python2_pickle(value: Any) -> bytes:
    return b"\x80\x02" + _code(value) + b"."


def _code(value: Any) -> bytes:
    if isinstance(value, bool) or value is None:
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, (str, bytes)):
        raw = value.encode("latin1") if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(raw)) + raw
    if isinstance(value, (list, tuple)):
        entries = b"(" + b"".join(map(_code, value))
        return entries + b"t" if isinstance(value, tuple) else b"]" + entries + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_code(key) + _code(entry) for key, entry in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    objects = value.dtype.kind == "O"
    content = value.ravel().tolist() if objects else value.tobytes()
    state = (1, value.shape, _Code(_dtype(value.dtype)), False, content)
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        + _code((0,))
        + _code("b")
        + b"tR"
    )
    return empty + _entries(state) + b"b"


class _Code(bytes):
    """What is code already."""


def _entries(state: tuple[Any, ...]) -> bytes:
    return b"(" + b"".join(x if isinstance(x, _Code) else _code(x) for x in state) + b"t"


def _dtype(dtype: np.dtype[Any]) -> bytes:
    order = {"=": "<"}.get(dtype.byteorder, dtype.byteorder)
    named = b"cnumpy\ndtype\n" + _code((dtype.str[1:], 0, 1)) + b"R"
    return (
        named + _code((3, order, None, None, None, -1, -1, 63 if dtype.kind == "O" else 0)) + b"b"
    )
