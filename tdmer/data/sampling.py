"""Batches of sequences of similar length, so that few steps are pads."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from tdmer._checks import check_count

Lengths = Sequence[int] | Int[Tensor, " n"]


class LengthBucketSampler(Sampler[list[int]]):
    """Batch sampler that puts samples of similar length into one batch.

    The samples are shuffled, sorted by length within pools of several batches, cut into batches,
    and the batches are shuffled. Over an epoch the ranks together yield every sample exactly once,
    in equally many batches each, whose sizes differ by at most one. The ranks' batches of one step
    are neighbours in length, so that no rank waits for a longer one.

    Args:
        lengths: Number of steps of every sample, or several such by modality
            (:attr:`MultimodalDataset.lengths`), which are summed.
        batch_size: Samples of a batch, at most; one more where otherwise a rank would have none.
        shuffle: Whether to shuffle; else all samples come sorted by length.
        pool: Batches per rank that are sorted together: more of them waste fewer steps, fewer of
            them mix more.
        seed: Seed of the shuffling; the same on all ranks.
        num_replicas: Number of ranks.
        rank: This rank.

    Raises:
        TypeError: A number is not an int.
        ValueError: A number is out of range, the modalities differ in their number of samples, or
            there are fewer samples than ranks.

    Example:
        >>> sampler = LengthBucketSampler([5, 90, 6, 80, 7], batch_size=2, shuffle=False)
        >>> list(sampler)
        [[0], [2, 4], [3, 1]]
    """

    def __init__(
        self,
        lengths: Lengths | Mapping[str, Lengths],
        batch_size: int,
        *,
        shuffle: bool = True,
        pool: int = 100,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        check_count("batch_size", batch_size)
        check_count("pool", pool)
        check_count("seed", seed, least=0)
        check_count("num_replicas", num_replicas)
        check_count("rank", rank, least=0)
        if rank >= num_replicas:
            raise ValueError(f"rank must be below num_replicas, {num_replicas}, got {rank}")
        columns = list(lengths.values()) if isinstance(lengths, Mapping) else [lengths]
        sizes = {len(column) for column in columns}
        if len(sizes) != 1:
            raise ValueError(f"lengths must be of one number of samples, got {sorted(sizes)}")
        count = sizes.pop()
        if count < num_replicas:
            raise ValueError(f"lengths must be at least {num_replicas}, one per rank, got {count}")
        self.lengths = np.sum([np.asarray(column) for column in columns], axis=0)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.pool = pool
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffling of an epoch; the same epoch gives the same batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank, which all ranks share."""
        count = len(self.lengths)
        # With very small batches there may be too few samples for one in every batch of a step.
        return min(-(-count // (self.batch_size * self.num_replicas)), count // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one batch after the other."""
        count, batches = len(self.lengths), len(self) * self.num_replicas
        bounds = [place * count // batches for place in range(batches + 1)]
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(count) if self.shuffle else np.arange(count)
        together = self.pool * self.num_replicas if self.shuffle else batches
        for first in range(0, batches, together):
            part = order[bounds[first] : bounds[min(first + together, batches)]]
            part[:] = part[np.argsort(self.lengths[part], kind="stable")]
        steps = rng.permutation(len(self)) if self.shuffle else np.arange(len(self))
        for step in steps:
            place = step * self.num_replicas + self.rank
            yield order[bounds[place] : bounds[place + 1]].tolist()
