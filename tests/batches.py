"""A small model and ragged batches for it."""

import torch

from tdmer import TDMER
from tests.ragged import ragged, with_pads

DIMS = {"text": 6, "audio": 4, "video": 3}
STEPS = {"text": 5, "audio": 9, "video": 7}


def make_model(dims=DIMS, classes=7, seed=0, **options) -> TDMER:
    torch.manual_seed(seed)
    return TDMER(dims, classes, width=8, heads=2, **options)


def make_batch(b=4, dims=DIMS, dtype=torch.float32):
    inputs, masks = {}, {}
    for number, (name, width) in enumerate(dims.items()):
        steps = STEPS.get(name, 4)
        inputs[name], masks[name] = ragged(b, steps, width, seed=number, dtype=dtype)
    labels = torch.linspace(-3, 3, b)
    return inputs, masks, labels


def pad(inputs, masks, steps, fill):
    padded = {name: with_pads(inputs[name], masks[name], steps, fill) for name in inputs}
    return {n: x for n, (x, _) in padded.items()}, {n: mask for n, (_, mask) in padded.items()}


def gradients(module):
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    assert found
    return found


def sequences(out):
    """Every kind of sequence of an output."""
    parts = out.common.sequences, out.enhanced.sequences
    return out.features, out.private.sequences, out.reconstructed, *parts


def assert_finite(terms, module):
    for name, value in terms._asdict().items():
        assert value.isfinite(), name
    terms.total.backward()
    for name, gradient in gradients(module).items():
        assert gradient.isfinite().all(), name
