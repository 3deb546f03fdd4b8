"""Measure what a trained model loses as an ONNX file, in int8 and in half precision.

    python examples/train.py --data mosi.pkl --steps 300 --out runs/export
    python examples/benchmarks/export.py runs/export --data mosi.pkl

Prints the tables of docs/export.md: size, figures on the validation split, and the largest
difference of a logit. Needs onnx, onnxscript and onnxruntime.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.torch import save
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic as quantize_linear
from torch.export import Dim
from torch.utils.data import DataLoader

from tdmer.data import Batch, collate

sys.path.append(str(Path(__file__).parents[1]))
from predict import load_run
from splits import load_splits
from task import main_figure, metrics


class Predictor(nn.Module):
    """A model of which only the logits are written."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """Return the logits."""
        return self.model(inputs, masks).logits


def write_onnx(model: nn.Module, batch: Batch, path: Path) -> None:
    axes = {modality: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for modality in batch.inputs}
    example = {"inputs": batch.inputs, "masks": batch.masks}
    shapes = {"inputs": axes, "masks": axes}
    program = torch.export.export(Predictor(model).eval(), (), example, dynamic_shapes=shapes)
    onnx = torch.onnx.export(program, dynamo=True, output_names=["logits"], verbose=False)
    ClearMetadataAndDocStringPass()(onnx.model)
    onnx.save(path)


def read_onnx(path: Path) -> Callable[[Batch], Tensor]:
    session = onnxruntime.InferenceSession(path)

    def logits(batch: Batch) -> Tensor:
        parts = (("inputs", batch.inputs), ("masks", batch.masks))
        feed = {f"{kind}_{m}": x.numpy() for kind, xs in parts for m, x in xs.items()}
        return torch.from_numpy(session.run(["logits"], feed)[0])

    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, task, samples = load_run(args.run)
    valid = load_splits(args.data, **samples)["valid"]
    batches = list(DataLoader(valid, 32, collate_fn=collate))
    labels = torch.cat([batch.labels for batch in batches])

    def size(module: nn.Module) -> int:
        return len(save(dict(module.state_dict())))

    def logits_of(module: nn.Module) -> Callable[[Batch], Tensor]:
        return lambda batch: module(batch.inputs, batch.masks).logits

    def under(dtype: torch.dtype) -> Callable[[Batch], Tensor]:
        return lambda batch: torch.autocast("cpu", dtype)(logits_of(model))(batch)

    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        onnx, int8 = Path(name, "model.onnx"), Path(name, "int8.onnx")
        write_onnx(model, batches[0], onnx)
        quantize_dynamic(onnx, int8, weight_type=QuantType.QUInt8)
        linear = quantize_linear(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        packed = Path(name, "linear.pt")
        torch.save(linear.state_dict(), packed)
        half, brain = copy.deepcopy(model).half(), copy.deepcopy(model).bfloat16()
        float32, halved = size(model), size(half)
        rows = {
            "float32, safetensors": (float32, logits_of(model)),
            "float32, ONNX": (onnx.stat().st_size, read_onnx(onnx)),
            "int8, ONNX": (int8.stat().st_size, read_onnx(int8)),
            "int8, torch.ao": (packed.stat().st_size, logits_of(linear)),
            "half()": (halved, logits_of(half)),
            "bfloat16()": (size(brain), logits_of(brain)),
            "autocast float16": (float32, under(torch.float16)),
            "autocast bfloat16": (float32, under(torch.bfloat16)),
        }
        figures = [main_figure(task), *(["acc2_non0"] if main_figure(task) == "mae" else [])]
        print(f"| | kB | {' | '.join(figures)} | logits differ by |")
        print("|---|" + "---|" * (len(figures) + 2))
        wanted = torch.cat([logits_of(model)(batch) for batch in batches])
        for title, (count, logits) in rows.items():
            found = torch.cat([logits(batch).float() for batch in batches])
            measured = metrics(task, found, labels)
            shown = " | ".join(f"{measured[figure]:.3f}" for figure in figures)
            gap = (found - wanted).abs().max().item()
            print(f"| {title} | {count / 1000:.0f} | {shown} | {gap:.1g} |")


if __name__ == "__main__":
    main()
