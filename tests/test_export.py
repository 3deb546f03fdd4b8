"""Other runtimes: the programs of docs/export.md, and what they make of any batch and length."""

import copy
import importlib.util
import itertools

import pytest
import torch
from jaxtyping import config
from torch._dynamo.testing import CompileCounter

from tests.ragged import ragged
from tests.test_docs import EXPORT, blocks, run

WIDTHS = {"text": 300, "audio": 74}
BATCHES = (1, 2, 5, 32)
STEPS = ((12, 94), (1, 1), (40, 3))

lacking = [m for m in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(m) is None]
if torch.__version__.startswith("2.6."):
    lacking.append("a PyTorch that exports baddbmm")

# PyTorch's own, where it copies a tree.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


@pytest.fixture(scope="module")
def parts():
    """Return the blocks of the page: one for torch.export, three for ONNX, one that compiles."""
    found = blocks(EXPORT)
    assert len(found) == 5
    return found[:1], found[1:4], found[4:]


@pytest.fixture(scope="module")
def page(parts, tmp_path_factory):
    """Run the first program of the page, and return the names it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setattr(config, "jaxtyping_disable", True)
        torch.manual_seed(0)
        yield run(EXPORT, parts[0], {})


@pytest.fixture(scope="module")
def cases(page):
    """Return batches, by size and steps, with logits and weights by the model, all finite."""
    found = {}
    for b, steps in itertools.product(BATCHES, STEPS):
        pairs = {m: ragged(b, t, WIDTHS[m], seed=t) for m, t in zip(WIDTHS, steps, strict=True)}
        inputs, masks = ({m: pair[i] for m, pair in pairs.items()} for i in (0, 1))
        if b >= 5:  # The first lacks the text, the second everything.
            masks["text"][:2], masks["audio"][1] = False, False
        batch = {"inputs": inputs, "masks": masks}
        results = expected(page["model"], batch)
        assert all(x.isfinite().all() for x in results)
        found[b, steps] = batch, results
    return found


@torch.no_grad()
def expected(model, batch):
    out = model(**batch)
    return out.logits.float(), torch.stack(list(out.weights.values()), dim=1).float()


def in_session(session):
    def run(batch):
        feed = {f"{kind}_{m}": x.numpy() for kind, xs in batch.items() for m, x in xs.items()}
        return [torch.from_numpy(x) for x in session.run(["logits", "weights"], feed)]

    return run


def assert_same(run, cases, tolerance):
    for batch, found in cases:
        torch.testing.assert_close(tuple(run(batch)), found, atol=tolerance, rtol=0)


def test_exported(page, cases):
    program = page["program"].module()
    assert_same(lambda batch: program(**batch), cases.values(), 1e-5)


@pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)}")
def test_onnx_and_its_int8(parts, page, cases):
    from onnxruntime import InferenceSession

    session = run(EXPORT, parts[1], page)["session"]
    assert_same(in_session(session), cases.values(), 1e-5)
    assert_same(in_session(InferenceSession("tdmer-int8.onnx")), cases.values(), 0.05)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_low_precision(page, cases, dtype, tolerance):
    model = copy.deepcopy(page["model"]).to(dtype)
    assert_same(lambda batch: expected(model, batch), cases.values(), tolerance)


def test_compiled_without_a_graph_per_length(parts, page, cases):
    counter = CompileCounter()
    model = torch.compile(page["model"], fullgraph=True, backend=counter)
    expected(model, run(EXPORT, parts[2], page)["example"])
    # PyTorch chooses its convolution by whether there are 16 samples, and compiles again.
    for batches, graphs in (((2, 5), 1), ((32,), 2)):
        some = [cases[b, steps] for b in batches for steps in ((12, 94), (40, 3))]
        assert_same(lambda batch: expected(model, batch), some, 1e-5)
        assert counter.frame_count <= graphs
