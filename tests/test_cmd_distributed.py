"""Central moment discrepancy over processes: real gloo ranks against one process."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from tdmer.losses import CMDLoss, central_moments, pairwise_cmd_loss

# Rows of every rank; the last rank of three holds none.
SHARES = {2: (7, 2), 3: (3, 9, 0)}
WIDTH = 6


def batch(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Inputs of three modalities, their masks, and weights, for all ranks together."""
    rows = 12
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
        .mul(scale)
        .to(dtype)
        for name, scale in (("text", 1.0), ("audio", 2.0), ("video", 4.0))
    }
    # The first rank has no audio at all, and no rank has the row of NaN.
    masks = {"audio": torch.arange(rows) >= 7, "video": torch.arange(rows) != 8}
    inputs["video"][8] = torch.nan
    return inputs, masks, torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype)


def encoder(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Sigmoid()).to(dtype)


def results(
    model: nn.Module, rows: slice, dtype: torch.dtype, group: dist.ProcessGroup | None
) -> dict[str, Tensor]:
    """Losses, moments and gradients of a share of the rows."""
    inputs, masks, weights = batch(dtype)
    inputs = {name: x[rows].nan_to_num() for name, x in inputs.items()}
    masks = {name: mask[rows] for name, mask in masks.items()}
    joined = model(torch.cat(list(inputs.values())))
    features = dict(zip(inputs, joined.chunk(3), strict=True))
    pairwise = pairwise_cmd_loss(features, masks=masks, span=0.5, group=group)
    weighted = CMDLoss(n_moments=3, group=group)(
        features["text"], features["video"], x_weights=weights[rows], y_mask=masks["video"]
    )
    (pairwise + weighted).backward()
    # As one vector: in float32 a bias alone, a sum that cancels, is off by more than 1e-6.
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    found = {"gradient": torch.cat(gradients)}
    found |= {"pairwise": pairwise.detach(), "weighted": weighted.detach()}
    nothing = torch.zeros_like(weights[rows], dtype=torch.bool)
    x = inputs["text"]
    found["unmasked"] = pairwise_cmd_loss([x, inputs["audio"]], span=9.0, group=group)
    found["moments"] = central_moments(x, group=group)
    found["no sample"] = central_moments(x, mask=nothing, group=group)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        moments = central_moments(dual, weights=weights[rows], group=group)
        found["tangent"] = forward_ad.unpack_dual(moments).tangent[:1]
    return found


def work(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    start = sum(SHARES[size][:rank])
    rows = slice(start, start + SHARES[size][rank])
    for dtype in (torch.float32, torch.float64):
        model = DistributedDataParallel(encoder(dtype))
        torch.save(results(model, rows, dtype, dist.group.WORLD), f"{folder}/{rank}-{dtype}.pt")
        del model
    dist.barrier()
    dist.destroy_process_group()


# Forward mode of torch compiles its own decompositions.
@pytest.mark.parametrize("size", SHARES)
def test_ranks_with_uneven_shares_equal_one_process(size: int, tmp_path: Path) -> None:
    # A server that has imported this module once forks the ranks.
    multiprocessing.set_forkserver_preload([__name__])
    start_processes(work, (size, str(tmp_path)), nprocs=size, start_method="forkserver")
    everything = slice(0, sum(SHARES[size]))
    for dtype in (torch.float32, torch.float64):
        expected = results(encoder(dtype), everything, dtype, None)
        for rank in range(size):
            found = torch.load(tmp_path / f"{rank}-{dtype}.pt")
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                error = (found[name] - value).norm()
                bound = 1e-6 if dtype == torch.float32 else 1e-12
                assert error <= bound * value.norm(), (name, rank, dtype)
