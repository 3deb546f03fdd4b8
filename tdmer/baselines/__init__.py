"""The systems that TDMER is compared with: one call, one objective, one training loop for all."""

from collections.abc import Mapping

from tdmer.baselines.early_fusion import EarlyFusion
from tdmer.baselines.late_fusion import LateFusion
from tdmer.baselines.lmf import LMF
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
}

__all__ = [
    "LMF",
    "SYSTEMS",
    "TFN",
    "Auxiliary",
    "BaselineLoss",
    "BaselineOutput",
    "BaselineTerms",
    "EarlyFusion",
    "LateFusion",
    "Plain",
    "Unimodal",
    "supervised_loss",
]
