"""What importing the data part needs and costs."""

import subprocess
import sys


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_numpy_may_say_ndarray_with_a_type_alias():
    # NumPy 2.5 does so from Python 3.12 on, and jaxtyping cannot take an alias.
    program = """
import typing
import numpy as np, numpy.typing
from typing_extensions import TypeAliasType

scalar = typing.TypeVar("scalar", bound=np.generic)
array = np.ndarray[tuple[int, ...], np.dtype[scalar]]
numpy.typing.NDArray = TypeAliasType("NDArray", array, type_params=(scalar,))

import tdmer.data

assert all(hasattr(tdmer.data, name) for name in tdmer.data.__all__)
"""
    done = run(program)
    assert done.returncode == 0, done.stderr
