"""The systems against MMSA's own modules: with the same weights, the same forward pass.

    pip install --no-deps MMSA
    pytest tests/test_baselines_parity.py

MMSA asks for releases of other packages that are long gone, so the tests do not bring it along. Its
files are read one by one: its packages import what no module here needs.
"""

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tdmer import Classification, baselines

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("MMSA") is None,
    reason="MMSA is not installed: pip install --no-deps MMSA",
)

# MMSA's order, text, audio, video, is that of these names.
TEXT, AUDIO, VIDEO = NAMES = ("m0", "m1", "m2")
DIMS = {TEXT: 11, AUDIO: 5, VIDEO: 7}
CLASSES = 3
WIDTH = 8


class States(nn.Module):
    """In the place of BERT: the states that it would make."""

    made: Tensor

    def __init__(self, **options: object) -> None:
        super().__init__()

    def forward(self, text: Tensor) -> Tensor:
        return self.made


@pytest.fixture
def from_mmsa(monkeypatch):
    """Return a function that makes a module of MMSA with random weights, statistics of 0 and 1."""
    path = Path(__file__).parents[1] / "examples" / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    kind = peers.from_mmsa("models.subNets.FeatureNets", "SubNet")
    nets = sys.modules["MMSA.models.subNets"]
    nets.SubNet, nets.BertTextEncoder = kind, States
    nets.TextSubNet = peers.from_mmsa("models.subNets.FeatureNets", "TextSubNet")

    def make(name: str, **args: object) -> nn.Module:
        torch.manual_seed(0)
        common = {
            "feature_dims": tuple(DIMS.values()),
            "train_mode": "classification",
            "num_classes": CLASSES,
            "device": "cpu",
        }
        module = peers.from_mmsa(f"models.singleTask.{name}", name)(Namespace(**(common | args)))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_var.fill_(1 - part.eps)
        return module.eval()

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "MMSA"]:
        del sys.modules[name]


def inputs(steps=(6, 6, 6), dims=DIMS) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {m: torch.randn(4, t, dims[m]) for m, t in zip(NAMES, steps, strict=True)}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def copy(ours: nn.Module, pairs: dict[str, nn.Module | Tensor]) -> None:
    """Give parts of ours, by name, the weights of parts of theirs; every weight is given once."""
    own = dict(ours.named_parameters())
    for name, theirs in pairs.items():
        given = {"": theirs} if isinstance(theirs, Tensor) else dict(theirs.named_parameters())
        for rest, weight in given.items():
            if isinstance(theirs, nn.LSTMCell) and f"{name}.{rest}" not in own:
                rest = f"{rest}_l0"
            with torch.no_grad():
                own.pop(f"{name}.{rest}" if rest else name).copy_(weight)
    assert not own, f"not given: {list(own)}"


def linears(prefix: str, net: nn.Module, *names: str, start: int = 0) -> dict[str, nn.Module]:
    """Pair every second layer of a Sequential with the named layers of theirs."""
    return {f"{prefix}.{start + 2 * n}": getattr(net, name) for n, name in enumerate(names)}


def utterance_pairs(theirs: nn.Module) -> dict[str, nn.Module]:
    pairs: dict[str, nn.Module] = {}
    for m, net in ((AUDIO, theirs.audio_subnet), (VIDEO, theirs.video_subnet)):
        pairs |= linears(f"nets.{m}.layers", net, "linear_1", "linear_2", "linear_3")
    text = theirs.text_subnet
    return pairs | {
        f"nets.{TEXT}.recurrent.lstm": text.rnn,
        f"nets.{TEXT}.project": text.linear_1,
    }


def averaged(x: dict[str, Tensor]) -> list[Tensor]:
    """MMSA is given the means of sound and face over time."""
    return [x[TEXT], x[AUDIO].mean(1, keepdim=True), x[VIDEO].mean(1, keepdim=True)]


def batch_norms(theirs: nn.Module) -> int:
    return sum(count(part) for part in theirs.modules() if isinstance(part, nn.BatchNorm1d))


def test_tfn(from_mmsa):
    theirs = from_mmsa(
        "TFN",
        hidden_dims=(2 * WIDTH, WIDTH, WIDTH),
        text_out=WIDTH,
        post_fusion_dim=10,
        dropouts=(0.3, 0.3, 0.3, 0.5),
    )
    ours = baselines.TFN(DIMS, CLASSES, width=WIDTH, hidden=10, read=[TEXT]).eval()
    copy(
        ours,
        utterance_pairs(theirs)
        | linears("head", theirs, *(f"post_fusion_layer_{n}" for n in (1, 2, 3)), start=1),
    )
    # The products are the same, in another order.
    first = ours.head[1].weight
    cube = theirs.post_fusion_layer_1.weight.detach().view(10, *[WIDTH + 1] * 3)
    with torch.no_grad():
        first.copy_(cube.permute(0, 3, 1, 2).flatten(1))
    x = inputs()
    torch.testing.assert_close(ours(x).logits, theirs(*averaged(x))["M"], rtol=0, atol=1e-5)
    output_range_and_shift = 2
    assert count(ours) == count(theirs) - batch_norms(theirs) - output_range_and_shift


def test_lmf(from_mmsa):
    hidden = (2 * WIDTH, WIDTH, WIDTH)
    theirs = from_mmsa("LMF", hidden_dims=hidden, rank=3, dropouts=(0.3, 0.3, 0.3, 0.3))
    ours = baselines.LMF(DIMS, CLASSES, width=WIDTH, rank=3, read=[TEXT]).eval()
    nn.init.normal_(theirs.fusion_bias)
    copy(
        ours,
        utterance_pairs(theirs)
        | {
            "weights": theirs.fusion_weights,
            "bias": theirs.fusion_bias[0],
            f"factors.{TEXT}": theirs.text_factor,
            f"factors.{AUDIO}": theirs.audio_factor,
            f"factors.{VIDEO}": theirs.video_factor,
        },
    )
    x = inputs()
    torch.testing.assert_close(ours(x).logits, theirs(*averaged(x))["M"], rtol=0, atol=1e-5)
    assert count(ours) == count(theirs) - batch_norms(theirs)


def test_mfm(from_mmsa):
    factor = 6
    config = {"drop": 0.5, "shapes": WIDTH}
    names = ("NN1Config", "NN2Config", "gamma1Config", "gamma2Config", "outConfig")
    theirs = from_mmsa(
        "MFM",
        hidden_dims=(WIDTH,) * 3,
        memsize=WIDTH,
        windowsize=2,
        **{f"z{part}_size": WIDTH for part in "ylav"},
        **{f"f{part}_size": factor for part in "ylav"},
        **{f"z{part}_to_f{part}_dropout": 0.5 for part in "ylav"},
        fy_to_y_dropout=0.5,
        **dict.fromkeys(names, config),
        **{f"lda_x{part}": 1.0 for part in "lav"},
    )
    ours = baselines.MFM(DIMS, CLASSES, width=WIDTH, factor_width=factor).eval()
    fusion = theirs.mfn_encoder

    def two(prefix: str, net: nn.Module, name: str) -> dict[str, nn.Module]:
        first, second = getattr(net, f"{name}_fc1"), getattr(net, f"{name}_fc2")
        return {f"{prefix}.0": first, f"{prefix}.3": second}

    pairs = {"label_encoder": theirs.last_to_zy_fc1}
    pairs |= two("label_layers.0", theirs, "zy_to_fy") | two("head", theirs, "fy_to_y")
    for part, name in (
        *(("attend", "att1"), ("propose", "att2")),
        *(("keep", "gamma1"), ("write", "gamma2")),
    ):
        pairs |= two(f"fusion.{part}", fusion, name)
    for m, letter in zip(NAMES, "lav", strict=True):
        encoder, decoder = (getattr(theirs, f"{kind}_{letter}") for kind in ("encoder", "decoder"))
        pairs |= two(f"layers.{m}.0", theirs, f"z{letter}_to_f{letter}") | {
            f"fusion.cells.{m}.lstm": getattr(fusion, f"lstm_{letter}"),
            f"encoders.{m}.lstm": encoder.lstm,
            f"projections.{m}": encoder.fc1,
            f"decoders.{m}.lstm": decoder.lstm,
            f"decoders.{m}.out": decoder.fc1,
        }
    copy(ours, pairs)
    for made in ours.decoders.values():  # Ours has the sum of what reads the state there.
        with torch.no_grad():
            made.lstm.weight_hh_l0.add_(made.lstm.weight_ih_l0)
    x = inputs()
    out = ours(x)
    logits, rebuilt, *_ = theirs(*x.values())
    torch.testing.assert_close(out.logits, logits, rtol=0, atol=1e-5)
    found = out.losses(Classification(CLASSES), torch.zeros(4, dtype=torch.int64))
    value = found["reconstruction"].value
    torch.testing.assert_close(value, rebuilt, rtol=0, atol=1e-5)
    unused = count(fusion.out_fc1) + count(fusion.out_fc2)
    assert count(ours) == count(theirs) - unused


def test_mult(from_mmsa):
    drops = ("attn", "attn", "relu", "embed", "res", "output", "text")
    layers = 3
    theirs = from_mmsa(
        "MULT",
        use_bert=False,
        dst_feature_dim_nheads=(WIDTH, 2),
        nlevels=layers,
        **{f"{name}_dropout": 0.1 for name in drops},
        **{f"attn_dropout_{part}": 0.1 for part in "av"},
        attn_mask=False,
        **{f"conv1d_kernel_size_{part}": 1 for part in "lav"},
    )
    ours = baselines.MulT(
        DIMS,
        CLASSES,
        width=WIDTH,
        heads=2,
        layers=layers,
        memory=layers,
        kernel_size=1,
        positions=False,
    ).eval()
    letters = dict(zip(NAMES, "lav", strict=True))
    sources: list[nn.LayerNorm] = []

    def block(prefix: str, source: str, layer: nn.Module) -> dict[str, nn.Module | Tensor]:
        attention = layer.self_attn
        pairs: dict[str, nn.Module | Tensor] = {
            f"{prefix}.target_norm": layer.layer_norms[0],
            f"{prefix}.feed_forward.0": layer.layer_norms[1],
            f"{prefix}.feed_forward.1": layer.fc1,
            f"{prefix}.feed_forward.3": layer.fc2,
            f"{prefix}.attention.out.{source}": attention.out_proj,
        }
        chunks = zip(
            ("query", "key", "value"),
            attention.in_proj_weight.chunk(3),
            attention.in_proj_bias.chunk(3),
            strict=True,
        )
        for name, weight, bias in chunks:
            pairs[f"{prefix}.attention.{name}.{source}.weight"] = weight
            pairs[f"{prefix}.attention.{name}.{source}.bias"] = bias
        return pairs

    pairs: dict[str, nn.Module | Tensor] = {
        "residual.0": theirs.proj1,
        "residual.3": theirs.proj2,
        "head": theirs.out_layer,
    }
    for m, letter in letters.items():
        pairs[f"temporal.{m}.conv.weight"] = getattr(theirs, f"proj_{letter}").weight
        pairs[f"temporal.{m}.conv.bias"] = torch.zeros(WIDTH)
        memory = getattr(theirs, f"trans_{letter}_mem")
        pairs[f"targets.{m}.memory_norm"] = memory.layer_norm
        for n, layer in enumerate(memory.layers):
            pairs |= block(f"targets.{m}.memory.{n}", "itself", layer)
        for p in [p for p in NAMES if p != m]:
            encoder = getattr(theirs, f"trans_{letter}_with_{letters[p]}")
            prefix = f"targets.{m}.encoders.{p}"
            # Theirs norms the source anew in every layer, by the norm of the target.
            norm = nn.LayerNorm(WIDTH)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            for layer in encoder.layers:
                layer.layer_norms[0].load_state_dict(norm.state_dict())
            sources.append(norm)
            pairs[f"{prefix}.source_norms.{p}"] = norm
            pairs[f"targets.{m}.norms.{p}"] = encoder.layer_norm
            for n, layer in enumerate(encoder.layers):
                pairs |= block(f"{prefix}.blocks.{n}", p, layer)
    copy(ours, pairs)
    x = inputs((6, 9, 4))
    torch.testing.assert_close(ours(x).logits, theirs(*x.values())["M"], rtol=0, atol=1e-5)
    biases = WIDTH * len(DIMS)
    assert count(ours) == count(theirs) + sum(map(count, sources)) + biases


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_misa(from_mmsa):
    # Theirs is hard-wired to BERT, and has the codes in the order text, video, audio.
    letters = dict(zip(NAMES, "tva", strict=True))
    dims = dict(zip(NAMES, (768, 7, 5), strict=True))
    theirs = from_mmsa(
        "MISA",
        use_bert=True,
        use_finetune=False,
        transformers="bert",
        pretrained="",
        rnncell="lstm",
        use_cmd_sim=True,
        hidden_size=WIDTH,
        dropout=0.2,
        feature_dims=(768, 5, 7),
    )
    ours = baselines.MISA(dims, CLASSES, width=WIDTH, read=NAMES[1:]).eval()
    pairs: dict[str, nn.Module | Tensor] = {
        "shared.0": theirs.shared.shared_1,
        "attention": theirs.transformer_encoder.layers[0],
        "head.0": theirs.fusion.fusion_layer_1,
        "head.3": theirs.fusion.fusion_layer_3,
    }
    for m, letter in letters.items():
        project = getattr(theirs, f"project_{letter}")
        pairs |= {
            f"utterances.{m}.project.0": project[0],
            f"utterances.{m}.project.2": project[2],
            f"private.{m}.0": getattr(theirs, f"private_{letter}")[0],
            f"decoders.{m}": getattr(theirs, f"recon_{letter}")[0],
        }
        if letter != "t":
            # Theirs joins the states of both nets by direction, ours the directions by net.
            states = project[0].weight.view(WIDTH, 2, 2, -1).transpose(1, 2).flatten(1)
            pairs[f"utterances.{m}.project.0.weight"] = states
            pairs[f"utterances.{m}.project.0.bias"] = project[0].bias
            del pairs[f"utterances.{m}.project.0"]
            pairs |= {
                f"utterances.{m}.first.lstm": getattr(theirs, f"{letter}rnn1"),
                f"utterances.{m}.second.lstm": getattr(theirs, f"{letter}rnn2"),
                f"utterances.{m}.norm": getattr(theirs, f"{letter}layer_norm"),
            }
    copy(ours, pairs)
    text, video, audio = inputs(dims=dims).values()
    theirs.bertmodel.made = text
    out = ours({TEXT: text, NAMES[1]: video, NAMES[2]: audio})
    logits = theirs(torch.ones(4, 3, 6), audio, video)["M"]
    torch.testing.assert_close(out.logits, logits, rtol=0, atol=1e-5)
    for place, letter in enumerate(letters.values()):
        rebuilt = getattr(theirs, f"utt_{letter}_recon")
        torch.testing.assert_close(out.reconstructed[:, place], rebuilt, rtol=0, atol=1e-5)
    unused = count(theirs.sp_discriminator) + count(theirs.tlayer_norm)
    assert count(ours) == count(theirs) - unused
