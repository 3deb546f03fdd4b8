"""What the Trainer of Hugging Face transformers asks for; transformers itself is not imported."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch.distributed as dist
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset

from tdmer.data import Sample, collate
from tdmer.encoders import PretrainedEncoder
from tdmer.layers import CrossModalEncoder
from tdmer.objective import TDMERLoss


class TDMERForTrainer(nn.Module):
    """A model with its objective: ``forward`` returns the loss and the logits.

    Of several processes, the loss is that of the whole batch (``TDMERLoss(group=)``), in
    evaluation, too: with labels, all of them must call.

    Args:
        model: A :class:`~tdmer.model.TDMER`, which stays as it is and where it is: in ``model``.
        objective: Its objective. A ``group`` of its own is kept.

    Attributes:
        accepts_loss_kwargs: False, by which the Trainer knows that it is to divide the loss by the
            number of batches that it accumulates.

    Example:
        >>> import torch
        >>> from tdmer import TDMER, Classification
        >>> task = Classification(2)
        >>> model = TDMERForTrainer(TDMER({"text": 4}, task.num_classes), TDMERLoss(task))
        >>> found = model({"text": torch.zeros(3, 5, 4)}, labels=torch.tensor([0, 1, 1]))
        >>> {name: tuple(value.shape) for name, value in found.items()}
        {'loss': (), 'logits': (3, 2)}
    """

    accepts_loss_kwargs = False

    def __init__(self, model: nn.Module, objective: TDMERLoss) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self,
        inputs: Mapping[str, Shaped[Tensor, "b ..."]],
        masks: Mapping[str, Bool[Tensor, "b ..."] | None] | None = None,
        labels: Shaped[Tensor, "b ..."] | None = None,
    ) -> dict[str, Tensor]:
        """Return the ``logits`` and, where there are labels, the ``loss`` before them."""
        output = self.model(inputs, masks)
        if labels is None:
            return {"logits": output.logits}
        # Not before: the Trainer starts the processes' group after the model is made.
        if self.objective.group is None and dist.is_available() and dist.is_initialized():
            self.objective.group = dist.group.WORLD
        return {"loss": self.objective(output, labels).total, "logits": output.logits}

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Compute blocks, of encoders too, anew for the gradient, as the Trainer asks for it.

        Args:
            activation_checkpointing_kwargs: None, or what is done anyway,
                ``{"use_reentrant": False}``.
            **options: What the Trainer passes on, at its defaults.

        Raises:
            ValueError: Another way of checkpointing is asked for.
        """
        given = {**(activation_checkpointing_kwargs or {}), **options}
        usual = {"use_reentrant": False, "every_n_layers": 1, "offload": False}
        others = {name: x for name, x in given.items() if name not in usual or x != usual[name]}
        if others:
            raise ValueError(
                "activation_checkpointing_kwargs must be None or {'use_reentrant': False}, "
                f"got {others}"
            )
        for module in self.modules():
            if isinstance(module, CrossModalEncoder):
                module.recompute = True
            elif isinstance(module, PretrainedEncoder):
                module.activation_checkpointing_enable()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Do the same under the name that older releases of transformers call."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)


def collate_for_trainer(samples: Sequence[Sample | Mapping[str, Any]]) -> dict[str, Any]:
    """Pad samples to a batch by :func:`~tdmer.data.collate`, as arguments of a model's ``forward``.

    Args:
        samples: Samples of a data set, or of :class:`WithLengths`.

    Returns:
        ``inputs``, ``masks`` and ``labels``.

    Raises:
        TypeError: What is to be padded are no samples.

    Example:
        >>> import torch
        >>> batch = collate_for_trainer([Sample({"text": torch.ones(3, 2)}, torch.tensor(0.5), "")])
        >>> {name: tuple(mask.shape) for name, mask in batch["masks"].items()}
        {'text': (1, 3)}
    """
    batch = collate([_sample(sample) for sample in samples])
    return {"inputs": batch.inputs, "masks": batch.masks, "labels": batch.labels}


def _sample(sample: Sample | Mapping[str, Any]) -> Sample:
    if isinstance(sample, Sample):
        return sample
    if not isinstance(sample, Mapping) or "inputs" not in sample or "labels" not in sample:
        found = list(sample) if isinstance(sample, Mapping) else type(sample).__name__
        raise TypeError(
            f"samples must be of a tdmer.data.MultimodalDataset, got {found}: "
            "tdmer.data.from_sequences makes one of columns"
        )
    return Sample(sample["inputs"], sample["labels"], "")


class WithLengths(Dataset[dict[str, Any]]):
    """A data set whose samples tell their length to the samplers of the Trainer.

    They take the length of ``input_ids``, which here is a range: of as many steps as the modalities
    of the sample have together.

    Args:
        dataset: Any data set of :class:`~tdmer.data.Sample` with a length. It is read from
            beginning to end once per sampler.

    Example:
        >>> import torch
        >>> inputs = {"text": torch.ones(3, 2), "audio": torch.ones(5, 4)}
        >>> WithLengths([Sample(inputs, torch.tensor(0), "")])[0]["input_ids"]
        range(0, 8)
    """

    dataset: Sequence[Sample]

    def __init__(self, dataset: Sequence[Sample] | Dataset[Sample]) -> None:
        self.dataset = cast(Sequence[Sample], dataset)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample as ``inputs``, ``labels`` and ``input_ids``."""
        sample = self.dataset[index]
        steps = sum(len(sequence) for sequence in sample.inputs.values())
        return {"inputs": sample.inputs, "labels": sample.label, "input_ids": range(steps)}
