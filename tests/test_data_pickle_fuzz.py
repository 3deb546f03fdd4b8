"""Hostile pickles by the thousand: nothing runs, nothing crashes, little memory is taken.

The suite tries 2,000; the long run is ``FUZZ_PICKLES=100000 pytest -s`` on this file. A pickle is
made from its number alone: ``python -m tests.test_data_pickle_fuzz DIR 17 18`` tries number 17.
"""

import collections
import json
import os
import pickle
import pickletools
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tdmer.data.readers._pickle import _TABLE, load_pickle
from tests.test_data_pickle import GADGETS

# Limits and measures of memory are those of Unix.
resource = pytest.importorskip("resource")

PICKLES = int(os.environ.get("FUZZ_PICKLES", "2000"))
# So many in one process, which takes three seconds to start.
BATCH = 10_000
GIB = 2**30
SECONDS = 10

# What is hostile


def seeds():
    """Valid pickles: every protocol, both names of NumPy's core, MMSA's and MISA's layouts."""
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(3.0), np.arange(2)]
    split = {
        "text": np.arange(12, dtype="<f4").reshape(2, 3, 2),
        "audio_lengths": [3, 1],
        "id": np.array(["v$_$1", "v$_$2"]),
        "raw_text": ["so good", "né"],
        "regression_labels": np.array([-1.5, 2.0]),
        "annotations": ["Positive", b"x", None],
    }
    sample = ((np.arange(3), np.ones((3, 2), "f4"), ["a", "b"]), np.float32([[1.2]]), "v[1]")
    plain = [
        *(None, True, 7, -(2**70), 0.5, 1 - 2j, "t\xebxt\u20ac", b"\xff\n", bytearray(b"ab")),
        ({"a", 2}, frozenset({(1, "x")}), {}, (), [[]], {(1, 2): {"x": [3]}}),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        [np.float32(1.5), np.int64(-3), np.str_("n\xe9"), np.bool_(True), np.dtype(">f4")],
        [np.asfortranarray(np.ones((2, 3))), ragged, np.zeros((0, 5)), np.array(["S"])],
    ]
    for value in ({"train": split, "valid": split}, [sample, sample], plain, ragged):
        for protocol in range(6):
            content = pickle.dumps(value, protocol)
            yield content
            if protocol < 4:
                yield content.replace(b"numpy._core", b"numpy.core")


def mutated(draw, valid):
    """A valid pickle with bytes changed, cut, repeated, or exchanged with another's."""
    content = bytearray(draw.choice(valid))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, length = draw.randrange(len(content) + 1), draw.choice((1, 2, 4, 8, 64))
        match draw.randrange(8):
            case 0:
                content[at : at + 1] = draw.randbytes(1)
            case 1:
                content[at:at] = draw.randbytes(length)
            case 2:
                content[at : at + length] = b""
            case 3:
                content[at:at] = content[at : at + length] * draw.choice((1, 3, 50))
            case 4:
                other = draw.choice(valid)
                begin = draw.randrange(len(other))
                content[at : at + draw.choice((0, length))] = other[begin : begin + 4 * length]
            case 5:
                del content[at + 1 :]
            case 6:
                content[at : at + 1] = draw.choice(pickletools.opcodes).code.encode("latin1")
            case 7:
                content[at:at] = opcode(draw, draw.choice(pickletools.opcodes))
    return bytes(content)


ALLOWED = [tuple(name.rsplit(".", 1)) for name in _TABLE]
REFUSED = [(module, name) for module, names in GADGETS.items() for name in names.split()]
NUMBERS = (0, 1, 2, 3, 4, 8, 63, 64, 100, 255, 256, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = (
    *("f4", "O8", "U3", "S999999999", "V8", "f4,(9999,9999)f4", "<", "|", "C", "F", "K", "latin1"),
    *("", "x", "a" * 300, "\ud800", "zlib", "numpy", "os", "system", "__setstate__"),
)
OPCODES = [code for code in pickletools.opcodes if code.name != "STOP"]
# Those that do more than to push their argument.
MACHINERY = {
    *("APPEND", "APPENDS", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT"),
    *("MEMOIZE", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "FROZENSET"),
    *("SETITEM", "SETITEMS", "ADDITEMS", "GLOBAL", "INST", "STACK_GLOBAL", "REDUCE", "BUILD"),
    *("POP", "POP_MARK", "DUP", "PROTO", "FRAME", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID"),
    *("BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"),
}
ATOMS = [code for code in OPCODES if code.name not in MACHINERY]


def opcode(draw, code):
    """One opcode with an argument that is plausible, or a size that is not."""
    name, kind = code.name, code.arg.n if code.arg else 0
    start = code.code.encode("latin1")
    likely = draw.random() < 0.95
    if name in ("GLOBAL", "INST"):
        return start + "{}\n{}\n".format(*draw.choice(ALLOWED if likely else REFUSED)).encode()
    if name == "PROTO":
        return start + bytes([draw.choice((0, 2, 3, 4, 5, 6))])
    if kind >= 0:
        index = draw.randrange(4) if likely and ("PUT" in name or "GET" in name) else None
        number = draw.choice(NUMBERS) if index is None else index
        return start + (number % 256**kind).to_bytes(kind, "little")
    text = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    if kind == pickletools.UP_TO_NEWLINE:
        line = {"STRING": repr(text)[1:].encode(), "UNICODE": text, "PERSID": text}
        return start + line.get(name, b"%d" % draw.choice(NUMBERS)) + b"\n"
    if draw.random() < 0.3:
        text = draw.randbytes(draw.choice((1, 4, 8, 24, 200)))
    width = {-2: 1, -3: 4, -4: 4, -5: 8}[kind]
    size = len(text) if likely else draw.choice((255, 2**24, 2**30, 2**31 - 1, 2**40, 2**63 - 1))
    return start + (size % 256**width).to_bytes(width, "little") + text


def array(draw):
    """An array, scalar or dtype, whose shape and content mostly agree."""
    widths = {b"f4": 4, b"O8": 1, b"S4": 4, b"U1": 4, b"b1": 1, b"S0": 0}
    code, width = draw.choice(list(widths.items()))
    dtype = b"cnumpy\ndtype\nU\x02%b\x89\x88\x87R" % code
    if draw.random() < 0.3:
        dtype += b"(K\x03U\x01%bNNNK\x00K\x00K\x00tb" % draw.choice((b"<", b">", b"|"))
    rows, columns = draw.randrange(4), draw.choice((0, 1, 2, 3))
    shape = b"K%cK%c\x86" % (rows, columns)
    raw = draw.choice((bytes, draw.randbytes))(rows * columns * width)
    content = draw.choice((b"C", b"U")) + b"%c" % len(raw) + raw
    if code == b"O8":
        content = b"](" + b"".join(value(draw, 2) for _ in range(rows * columns)) + b"e"
    if draw.random() < 0.1:
        shape = value(draw, 1) + draw.choice((b"\x85", b"K\x00\x86", b""))
    if draw.random() < 0.1:
        content = value(draw, 1)
    core = draw.choice((b"numpy.core.", b"numpy._core."))
    empty = b"c%bmultiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R" % core
    built = (
        empty + b"(K\x01" + shape + dtype + draw.choice((b"\x88", b"\x89")) + content + b"tb",
        b"c%bnumeric\n_frombuffer\n(" % core + content + dtype + shape + b"U\x01CtR",
        b"c%bmultiarray\nscalar\n" % core + dtype + content + b"\x86R",
        dtype,
    )
    return draw.choice(built)


def value(draw, depth):
    """The code of one value; now and then one that leaves more on the stack, or less."""
    if depth == 0 or draw.random() < 0.3:
        return opcode(draw, draw.choice(ATOMS if draw.random() < 0.99 else OPCODES))
    few = [value(draw, depth - 1) for _ in range(draw.choice((0, 1, 2, 2, 3, 6)))]
    whole = b"".join(few)
    keys = [opcode(draw, draw.choice(ATOMS)) for _ in few]
    pairs = b"".join(key + entry for key, entry in zip(keys, few, strict=True))
    one = few[0] if few else b"N"
    memo = b"%c" % draw.randrange(4)
    name = "c{}\n{}\n".format(*draw.choice(ALLOWED)).encode()
    match draw.randrange(14):
        case 0 | 1:
            return draw.choice((b"](%be", b"(%bl", b"(%bt")) % whole
        case 2:
            return draw.choice((b"}(%bu", b"(%bd")) % pairs
        case 3:
            return draw.choice((b"\x8f(%b\x90", b"(%b\x91")) % draw.choice((whole, b"".join(keys)))
        case 4:
            return one + draw.choice((b"\x85", b"2\x86", b"22\x87", b"N0", b"]2a\x86"))
        case 5 | 6 | 7 | 8:
            return array(draw)
        case 9:
            return one + b"q" + memo
        case 10:
            return b"h" + memo
        case 11:
            # What is in the memo grows while it is held elsewhere.
            return b"]q" + memo + one + b"h" + memo + draw.choice((b"ah", b"0h", b"\x85ah")) + memo
        case 12:
            return name + b"(" + whole + b"tR"
        case _:
            return name + one + draw.choice((b"\x85R", b"b", b")R", b"R"))


def program(draw, valid):
    """A program of opcodes that fit each other, mostly."""
    start = draw.choice((b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"))
    memo = b"".join(value(draw, 1) + b"q%c0" % index for index in range(4))
    return start + memo + value(draw, draw.choice((1, 2, 3, 4))) + b"."


def nest(draw, valid):
    """Depth, width, sharing and repetition, as values, as keys and as arguments."""
    levels = draw.choice((10, 45, 90, 101, 1000, 20_000))
    wraps = (
        *(b"\x85", b"2\x86", b"22\x87", b"q\x000](h\x00h\x00e", b"q\x000(h\x00\x91"),
        *(b"q\x000(h\x00h\x00t", b"q\x000}Nh\x00s", b"q\x000}h\x00Ns", b"q\x000\x8f(h\x00\x90"),
        *(b"q\x000]h\x00a", b"q\x000cbuiltins\nfrozenset\nh\x00\x85\x85R"),
        b"q\x000cbuiltins\nset\nh\x00R",
    )
    wrap = draw.choice((draw.choice(wraps), b"".join(draw.choices(wraps, k=2))))
    # What doubles with each level takes the time of all its copies once it is a key.
    if wrap.count(b"h\x00") + wrap.count(b"2") > wrap.count(b"q\x000"):
        levels = draw.choice((3, 6))
    core = draw.choice((b"K\x01", b"]", b")", b"U\x01a", b"cnumpy\nndarray\n", b"(K\x01K\x02\x91"))
    deep = core + wrap * levels
    many = draw.choice((10, 100, 5000))
    text = b"X" + struct.pack("<I", 9 * many) + b"a" * 9 * many + b"q\x02U\x06latin1q\x010"
    wholes = (
        deep,
        # Keys, set entries and arguments.
        *(b"}%bNs" % deep, b"}(%b" % deep + b"N2" * many + b"u"),
        *(b"\x8f(%b\x90" % deep, b"(%b\x91" % deep, b"cnumpy\ndtype\n%b\x85R" % deep),
        b"cbuiltins\n%b\n%bR" % (draw.choice((b"set", b"frozenset", b"bytearray")), deep),
        # Width, cycles, and one thing many times.
        *(b"]q\x03" + b"h\x03a" * many, b"](" + b"2" * many + b"e", b"N" * many + b"t"),
        b"]q\x03(%be0](" % deep + b"h\x03" * many + b"e",
        b"(" * many * 10 + b"t" * draw.randrange(many * 10),
        text + b"](" + b"c_codecs\nencode\nh\x02h\x01\x86R" * draw.choice((1, many)) + b"e",
        text + b"](" + b"cbuiltins\nbytearray\nh\x02h\x01\x86R" * many + b"e",
        b"](" + draw.choice((b"]", b")", b"}", b"\x8f", b"N", b"(\x91")) * 50 * many + b"e",
    )
    return b"\x80\x03" + draw.choice(wholes) + draw.choice((b".", b".", b".", b"", deep + b"."))


KINDS = (mutated,) * 4 + (program,) * 5 + (nest,)


def hostile(number, valid):
    """Return the pickle of this number."""
    return KINDS[number % 10](random.Random(number), valid)


# What is tried, in a process of its own

PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)


def check(value):
    """Raise TypeError unless the value holds allowed types only."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if type(part) in (list, tuple, set, frozenset):
            waiting.extend(part)
        elif type(part) is dict:
            waiting.extend((*part.keys(), *part.values()))
        elif type(part) is np.ndarray and part.dtype.kind == "O":
            waiting.extend(part.reshape(-1))
        elif type(part) is np.ndarray:
            if part.dtype.kind not in "biufcSU" or part.flags.writeable:
                raise TypeError(f"an array of {part.dtype}")
        elif not isinstance(part, (np.generic, np.dtype, memoryview)) and type(part) not in PLAIN:
            raise TypeError(f"a {type(part)}")


def outcome(path, watch):
    """Load the file; what came of it in a word, or FAULT and what must not be."""
    watch.append(path)
    try:
        value = load_pickle(path)
    except ValueError as error:
        return "refused" if "load_pickle refuses" in str(error) else "damaged"
    except BaseException as error:
        return f"FAULT {type(error).__name__}: {error}"
    finally:
        watch.clear()
    try:
        check(value)
    except BaseException as error:
        return f"FAULT in the value, {type(error).__name__}: {error}"
    return "loaded"


def memory(key):
    """A figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key + ":"))) * 1024


def main(folder, first, last):
    """Try the pickles of these numbers; print what came of them as JSON."""
    valid = list(seeds())
    path = os.path.join(folder, "file.pkl")
    progress = os.open(os.path.join(folder, "progress"), os.O_RDWR | os.O_CREAT)
    watch = []

    def audit(event, arguments):
        allowed = event == "builtins.id" or (event, *arguments[:2]) == ("open", *watch, "r")
        # CPython reports so that memory was lacking while it filled a bytearray.
        allowed = allowed or (event, arguments[1:2]) == ("sys.excepthook", (SystemError,))
        if watch and not allowed:
            os.write(2, f"the audit saw {event} {arguments!r}\n".encode())
            os._exit(3)

    def attempt(content):
        Path(path).write_bytes(content)
        # Of the processor's time. The signal ends the process, even one that is in C.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        began = time.process_time()
        word = outcome(path, watch)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return word, time.process_time() - began

    # What is imported at its first use, such as codecs.
    for content in valid:
        assert attempt(content)[0] == "loaded"
    sys.addaudithook(audit)
    size, resident = memory("VmSize"), memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (size + GIB, size + GIB))
    counts, slowest, faults = collections.Counter(), (0.0, 0), []
    for number in range(first, last):
        os.pwrite(progress, b"%20d" % number, 0)
        word, seconds = attempt(hostile(number, valid))
        slowest = max(slowest, (seconds, number))
        if word.startswith("FAULT"):
            faults.append((number, word))
        else:
            counts[f"{KINDS[number % 10].__name__} {word}"] += 1
    peak = {"VmPeak": memory("VmPeak") - size, "VmHWM": memory("VmHWM") - resident}
    print(json.dumps({"counts": counts, "slowest": slowest, "faults": faults, "peak": peak}))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_hostile_pickles(tmp_path):
    counts, reports = collections.Counter(), []
    for first in range(0, PICKLES, BATCH):
        module, last = "tests.test_data_pickle_fuzz", min(first + BATCH, PICKLES)
        done = subprocess.run(
            [sys.executable, "-m", module, tmp_path, str(first), str(last)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"number {(tmp_path / 'progress').read_text()}: {done.stderr}"
        report = json.loads(done.stdout)
        assert report["faults"] == []
        reports.append(report)
        counts.update(report["counts"])
    print("\n", counts, "slowest:", max(report["slowest"] for report in reports))
    for key in ("VmPeak", "VmHWM"):
        print(key, max(report["peak"][key] for report in reports) >> 20, "MiB above the start")
    assert counts.total() == PICKLES
    # The generator is worth its name: every kind both loads and does not, in good number.
    for kind in {maker.__name__ for maker in KINDS}:
        for word in ("loaded", "damaged"):
            assert counts[f"{kind} {word}"] > PICKLES / 500, f"{kind} {word}"
    assert sum(count for name, count in counts.items() if "refused" in name) > PICKLES / 100


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
