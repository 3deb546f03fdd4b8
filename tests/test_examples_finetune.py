"""The example that fine-tunes an encoder of text."""

import argparse
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tdmer import Predictor, Sentiment
from tdmer.encoders import EncodedTDMER
from tests.test_examples import call, load, write_mmsa


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Write an encoder of text that knows three words, and return its folder."""
    folder = tmp_path_factory.mktemp("encoder")
    known = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "film"])}
    tokenizer = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 16}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    BertModel(BertConfig(vocab_size=5, num_attention_heads=2, **size)).save_pretrained(folder)
    return folder


def test_it_trains_the_encoder_and_reads_the_test_split_once(words, tmp_path, monkeypatch):
    data = write_mmsa(tmp_path / "small.pkl")
    module = load("finetune", monkeypatch)
    arguments = ["--encoder", words, "--out", tmp_path / "run", "--epochs", 2]
    arguments += ["--frozen-epochs", 1, "--train-layers", 1]
    with pytest.raises(SystemExit, match="train: there must be raw_text"):
        call(monkeypatch, module, "--data", data, *arguments)
    splits = pickle.loads(data.read_bytes())
    for split in splits.values():
        good = split["regression_labels"] > 0
        split["raw_text"] = np.where(good, "a good film", "bad")
    data.write_bytes(pickle.dumps(splits))
    measure, read, seen = module.measure, [], []

    def watch(model, task, samples):
        read.append(samples.ids[0].split("$")[0])
        weight = model.encoders["text"].get_parameter("model.encoder.layer.1.output.dense.weight")
        seen.append(weight.detach().clone())
        return measure(model, task, samples)

    monkeypatch.setattr(module, "measure", watch)
    options = ["--encoder-lr", 0.01]
    call(monkeypatch, module, "--data", data, *arguments, *options)
    assert read == ["valid"] * 3 + ["test"]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(found["history"]) == 3
    assert found["valid"]["mae"] == min(row["valid"]["mae"] for row in found["history"])
    before = load_file(words / "model.safetensors")
    after = load_file(tmp_path / "run" / "encoders" / "text" / "model.safetensors")
    assert torch.equal(seen[0], before["encoder.layer.1.output.dense.weight"])
    assert not torch.equal(seen[1], seen[0])
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert moved
    assert all("layer.1." in name for name in moved)
    model = EncodedTDMER.from_pretrained(tmp_path / "run")
    arguments = argparse.Namespace(data=data, modalities=None)
    samples = module.load_data(arguments, model.encoders["text"])["test"]
    assert samples[0].inputs["text"].tolist() in ([1, 2, 4], [3])
    again = measure(model, Sentiment(l1_weight=0.5, label_smoothing=0.1), samples)
    assert again.metrics == found["test"]
    found = Predictor.from_pretrained(tmp_path / "run")({"text": "a good film"})
    assert found.missing == ["audio", "video"]
    assert found == Predictor(model)({"text": [1, 2, 4]})
