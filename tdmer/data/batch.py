"""From samples to padded batches: collate, and the sampler that keeps pads few."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from tdmer._checks import check_count, check_real, per_modality
from tdmer.data.dataset import Sample

Lengths = Sequence[int] | Int[Tensor, " n"]


class Batch(NamedTuple):
    """Samples padded on the right to the longest of the batch, per modality.

    The first two entries are what a model takes; :class:`~tdmer.model.TDMER` passes over the rest:
    ``model(*batch)``.

    Example:
        >>> data = [Sample({"text": torch.ones(2, 3)}, torch.tensor(0.5), "one")]
        >>> batch = collate(data).to("meta")
        >>> batch.inputs["text"].device, batch.labels.device, batch.ids
        (device(type='meta'), device(type='meta'), ['one'])
    """

    inputs: dict[str, Float[Tensor, "b t f"]]
    """Padded features by modality, zeros in the pads."""
    masks: dict[str, Bool[Tensor, "b t"]]
    """True where a step is real, by modality."""
    labels: Shaped[Tensor, "b ..."]
    """The labels, stacked."""
    ids: list[str]
    """The names of the samples."""

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "Batch":
        """Return the batch with all its tensors on a device.

        Args:
            device: the device.
            non_blocking: whether not to wait for copies from pinned memory.
        """
        inputs, masks = (
            {name: x.to(device, non_blocking=non_blocking) for name, x in part.items()}
            for part in (self.inputs, self.masks)
        )
        return Batch(inputs, masks, self.labels.to(device, non_blocking=non_blocking), self.ids)


def collate(
    samples: Sequence[Sample], *, modality_dropout: float | Mapping[str, float] = 0.0
) -> Batch:
    """Pad samples on the right with zeros to the longest of the batch, per modality.

    A modality that no sample of the batch has keeps one padded step, so that its shape stays
    ``(b, 1, f)`` with a mask of False.

    Modality dropout trains a model for inputs that lack modalities. Every modality of every sample
    is dropped independently: it becomes a missing one. Where this would drop all that a sample has,
    one of them stays, each as likely as the others. With a data loader:
    ``collate_fn=functools.partial(collate, modality_dropout=0.2)``, in training only.

    Args:
        samples: at least one, all with the same modalities.
        modality_dropout: probability in [0, 1) that a modality is dropped, one for all or by name.
            Drawn from PyTorch's generator, which data loaders seed per worker; 0 draws nothing.

    Returns:
        The inputs, masks (True where a step is real), labels and ids.

    Raises:
        TypeError: samples that are no :class:`Sample`, or a probability that is not a number.
        ValueError: no samples, samples whose modalities differ, or a probability out of range or
            not for each modality.

    Example:
        >>> one = Sample({"text": torch.ones(1, 2)}, torch.tensor(0.5), "one")
        >>> two = Sample({"text": torch.ones(3, 2)}, torch.tensor(-1.0), "two")
        >>> batch = collate([one, two])
        >>> batch.inputs["text"].shape
        torch.Size([2, 3, 2])
        >>> batch.masks["text"]
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    if not samples:
        raise ValueError("samples must hold at least one sample, got none")
    for sample in samples:
        if not isinstance(sample, Sample):
            raise TypeError(f"samples must be of Sample, got {type(sample).__name__}")
    names = list(samples[0].inputs)
    for sample in samples:
        if sample.inputs.keys() != samples[0].inputs.keys():
            raise ValueError(
                f"samples must all have the modalities {names}, "
                f"got {list(sample.inputs)} in sample {sample.id!r}"
            )
    rates = per_modality("modality_dropout", modality_dropout, names)
    for name, rate in rates.items():
        check_real(f"modality_dropout of {name!r}", rate, below=1.0)
    if any(rates.values()):
        samples = _drop(samples, rates)
    inputs, masks = {}, {}
    for name in names:
        sequences = [sample.inputs[name] for sample in samples]
        padded = pad_sequence(sequences, batch_first=True)
        if padded.shape[1] == 0:
            padded = padded.new_zeros(len(samples), 1, padded.shape[2])
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=padded.device)
        inputs[name] = padded
        masks[name] = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
    labels = torch.stack([sample.label for sample in samples])
    return Batch(inputs, masks, labels, [sample.id for sample in samples])


def _drop(samples: Sequence[Sample], rates: Mapping[str, float]) -> list[Sample]:
    """Return the samples with modalities dropped at random, never all that a sample has."""
    rate = torch.tensor([rates[name] for name in samples[0].inputs])
    present = torch.tensor([[len(s.inputs[name]) > 0 for name in rates] for s in samples])
    # Below 1 with the probability of a drop, and then uniform: the highest may as well stay.
    score = (torch.rand(present.shape) / rate).masked_fill(rate == 0, float("inf"))
    highest = score.masked_fill(~present, 0.0).amax(dim=1, keepdim=True)
    dropped = ((score < 1) & (score < highest)).tolist()
    left = []
    for sample, row in zip(samples, dropped, strict=True):
        gone = [name for name, drop in zip(rates, row, strict=True) if drop]
        empty = {name: sample.inputs[name][:0] for name in gone}
        left.append(sample._replace(inputs=sample.inputs | empty))
    return left


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

    lengths: NDArray[Any]
    batch_size: int
    shuffle: bool
    pool: int
    num_replicas: int
    rank: int
    seed: int
    epoch: int

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
        self.batch_size, self.shuffle, self.pool = batch_size, shuffle, pool
        self.num_replicas, self.rank = num_replicas, rank
        self.seed, self.epoch = seed, 0

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
