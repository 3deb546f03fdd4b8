"""Pretrained encoders of transformers in front of the model: text, sound or frames to features."""

from tdmer.encoders.encoded import EncodedTDMER
from tdmer.encoders.pretrained import PretrainedEncoder

__all__ = ["EncodedTDMER", "PretrainedEncoder"]
