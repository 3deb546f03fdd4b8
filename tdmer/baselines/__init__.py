"""The systems that TDMER is compared with: one call, one objective, one training loop for all."""

from collections.abc import Mapping

from tdmer.baselines.confede import ConFEDE, ConFEDEOutput, contrastive_loss, like_labels
from tdmer.baselines.early_fusion import EarlyFusion
from tdmer.baselines.fdmer import FDMER, FDMEROutput
from tdmer.baselines.iccn import ICCN, ICCNOutput, correlation_loss
from tdmer.baselines.late_fusion import LateFusion, LateFusionOutput
from tdmer.baselines.lmf import LMF
from tdmer.baselines.mfm import MFM, MFMOutput, prior_loss
from tdmer.baselines.misa import MISA, MISAOutput, difference_loss
from tdmer.baselines.mult import MulT
from tdmer.baselines.objective import (
    Auxiliary,
    BaselineLoss,
    BaselineOutput,
    BaselineTerms,
    Plain,
    supervised_loss,
)
from tdmer.baselines.tfn import TFN
from tdmer.baselines.unimodal import Unimodal
from tdmer.pretrained import Pretrained

SYSTEMS: Mapping[str, type[Pretrained]] = {
    "unimodal": Unimodal,
    "early_fusion": EarlyFusion,
    "late_fusion": LateFusion,
    "tfn": TFN,
    "lmf": LMF,
    "mfm": MFM,
    "iccn": ICCN,
    "mult": MulT,
    "misa": MISA,
    "fdmer": FDMER,
    "confede": ConFEDE,
}
"""The systems by name. Each is made of ``dims`` and ``num_classes``; all else has a default."""

__all__ = [
    "FDMER",
    "ICCN",
    "LMF",
    "MFM",
    "MISA",
    "TFN",
    "Auxiliary",
    "BaselineLoss",
    "BaselineOutput",
    "BaselineTerms",
    "ConFEDE",
    "ConFEDEOutput",
    "EarlyFusion",
    "FDMEROutput",
    "ICCNOutput",
    "LateFusion",
    "LateFusionOutput",
    "MFMOutput",
    "MISAOutput",
    "MulT",
    "Plain",
    "Unimodal",
    "contrastive_loss",
    "correlation_loss",
    "difference_loss",
    "like_labels",
    "prior_loss",
    "supervised_loss",
]
