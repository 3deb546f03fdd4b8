"""What the benchmarks compare with: MMSA's own MulT, and training in the style of MISA.

    pip install -e ".[viz]"
    pip install --no-deps MMSA

MMSA is imported file by file: its package imports need releases of other packages that are long
gone, which MulT does not use.
"""

import importlib
import importlib.util
import sys
import types
from argparse import Namespace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PACKAGES = ("", ".models", ".models.subNets", ".models.singleTask", ".trains", ".trains.singleTask")


def from_mmsa(module: str, name: str) -> Any:
    """Return a name of a module of MMSA's without running the ``__init__`` files around it."""
    if "MMSA" not in sys.modules:
        spec = importlib.util.find_spec("MMSA")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("MMSA is not installed: pip install --no-deps MMSA")
        root = Path(spec.submodule_search_locations[0])
        for part in PACKAGES:
            package = types.ModuleType(f"MMSA{part}")
            package.__path__ = [str(root.joinpath(*part.split(".")))]
            package.BertTextEncoder = None
            sys.modules[f"MMSA{part}"] = package
    return getattr(importlib.import_module(f"MMSA.{module}"), name)


def mult(dims: list[int], width: int, heads: int, layers: int) -> nn.Module:
    """MMSA's MulT with its settings for MOSI, but for width, heads and layers."""
    args = Namespace(
        use_bert=False,
        dst_feature_dim_nheads=(width, heads),
        feature_dims=tuple(dims),
        nlevels=layers,
        attn_dropout=0.3,
        attn_dropout_a=0.2,
        attn_dropout_v=0.0,
        relu_dropout=0.0,
        embed_dropout=0.2,
        res_dropout=0.0,
        output_dropout=0.5,
        text_dropout=0.5,
        attn_mask=True,
        train_mode="regression",
        conv1d_kernel_size_l=5,
        conv1d_kernel_size_a=5,
        conv1d_kernel_size_v=5,
    )
    return from_mmsa("models.singleTask.MULT", "MULT")(args)


class MISA(nn.Module):
    """MISA by its formulas: two recurrent layers per modality, codes, one attention over them."""

    def __init__(self, dims: list[int], width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            nn.LSTM(d, width, batch_first=True, bidirectional=True) for d in dims
        )
        self.norms = nn.ModuleList(nn.LayerNorm(2 * width) for _ in dims)
        self.second = nn.ModuleList(
            nn.LSTM(2 * width, width, batch_first=True, bidirectional=True) for _ in dims
        )
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.LayerNorm(width)) for _ in dims
        )
        self.private = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for _ in dims
        )
        self.shared = nn.Sequential(nn.Linear(width, width), nn.Sigmoid())
        self.decode = nn.ModuleList(nn.Linear(width, width) for _ in dims)
        self.mix = nn.TransformerEncoderLayer(width, 2, 2048, batch_first=True)
        codes = 2 * len(dims) * width
        self.head = nn.Sequential(
            nn.Linear(codes, codes // 2), nn.Dropout(0.1), nn.ReLU(), nn.Linear(codes // 2, 1)
        )

    def forward(self, inputs: list[Tensor], lengths: list[Tensor], labels: Tensor) -> Tensor:
        """Return the whole loss: task, similarity, difference, reconstruction."""
        private, shared, rebuilt = [], [], torch.zeros(())
        for m, (x, steps) in enumerate(zip(inputs, lengths, strict=True)):
            packed, (one, _) = self.first[m](_pack(x, steps))
            normed = self.norms[m](pad_packed_sequence(packed, batch_first=True)[0])
            _, (two, _) = self.second[m](_pack(normed, steps))
            utterance = self.project[m](torch.cat([*one, *two], dim=1))
            private.append(self.private[m](utterance))
            shared.append(self.shared(utterance))
            rebuilt = rebuilt + F.mse_loss(self.decode[m](private[m] + shared[m]), utterance)
        tokens = torch.stack(private + shared, dim=1)
        task = F.mse_loss(self.head(self.mix(tokens).flatten(1)).squeeze(1), labels)
        pairs = list(combinations(range(len(inputs)), 2))
        similar = torch.stack([_cmd(shared[p], shared[q]) for p, q in pairs]).mean()
        different = [_difference(*both) for both in zip(private, shared, strict=True)]
        different += [_difference(private[p], private[q]) for p, q in pairs]
        return task + 0.3 * similar + 0.1 * sum(different) + 0.8 * rebuilt / len(inputs)


def _pack(x: Tensor, steps: Tensor) -> nn.utils.rnn.PackedSequence:
    return pack_padded_sequence(x, steps, batch_first=True, enforce_sorted=False)


def _cmd(x: Tensor, y: Tensor) -> Tensor:
    x_mean, y_mean = x.mean(0), y.mean(0)
    orders = [(x_mean - y_mean).norm()]
    orders += [
        (((x - x_mean) ** k).mean(0) - ((y - y_mean) ** k).mean(0)).norm() for k in range(2, 6)
    ]
    return torch.stack(orders).sum()


def _difference(x: Tensor, y: Tensor) -> Tensor:
    x, y = (z - z.mean(0) for z in (x, y))
    x, y = (z / (z.norm(dim=1, keepdim=True).detach() + 1e-6) for z in (x, y))
    return (x.T @ y).square().mean()
