"""Low-level descriptors of sound: what an extractor's part for audio looks like.

Such a part has ``columns``, names with units, and takes the samples of a block, mono at 16 kHz; it
returns the features ``(t, f)`` and the time of each step in seconds from the block's first sample.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmer._checks import check_count
from tdmer.features._extras import package
from tdmer.features.media import RATE

_STEP, _WINDOW, _FFT = RATE // 100, RATE // 40, 512
# openSMILE's windows of 60 ms, and what it needs beside them.
_SHORTEST = 1200
_UNITS = {
    "alphaRatio": "dB",
    "hammarbergIndex": "dB",
    "slope": "dB/Hz",
    "F0semitone": "semitones",
    "jitterLocal": "share of the period",
    "shimmerLocaldB": "dB",
    "HNR": "dB",
    "logRelF0": "dB",
    **{f"F{n}{kind}": "Hz" for n in (1, 2, 3) for kind in ("frequency", "bandwidth")},
    **{f"F{n}amplitude": "dB" for n in (1, 2, 3)},
}


@dataclass(frozen=True)
class LogMel:
    """Logarithm of the energy in mel bands, 100 steps per second.

    The step at time t is the natural logarithm of the power of a Hann window from t to t + 25 ms,
    in triangular bands that are evenly spaced from 0 to 8 kHz on the mel scale
    2595 log10(1 + Hz/700). It needs no package and no weights.

    Args:
        bands: number of bands.

    Example:
        >>> mel = LogMel(bands=20)
        >>> tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
        >>> features, times = mel(tone)
        >>> features.shape, times[:3], mel.columns[int(features.mean(axis=0).argmax())]
        ((98, 20), array([0.  , 0.01, 0.02]), 'log energy around 431 Hz')
    """

    bands: int = 40

    def __post_init__(self) -> None:
        check_count("bands", self.bands)

    @property
    def columns(self) -> list[str]:
        """The name of each column."""
        return [f"log energy around {hz:.0f} Hz" for hz in self._edges[1:-1]]

    @property
    def _edges(self) -> NDArray[np.float64]:
        mel = np.linspace(0.0, 2595 * np.log10(1 + RATE / 2 / 700), self.bands + 2)
        edges: NDArray[np.float64] = 700 * (10 ** (mel / 2595) - 1)
        return edges

    def __call__(
        self, samples: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return features and times of a block."""
        if len(samples) < _WINDOW:
            return np.empty((0, self.bands), np.float32), np.empty(0)
        windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_STEP]
        power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), _FFT)) ** 2
        hz = np.arange(_FFT // 2 + 1) * RATE / _FFT
        low, middle, high = (self._edges[n : n + self.bands, None] for n in range(3))
        rise, fall = (hz - low) / (middle - low), (high - hz) / (high - middle)
        energy = power @ np.maximum(np.minimum(rise, fall), 0.0).T
        return np.log(energy + 1e-6).astype(np.float32), np.arange(len(windows)) / 100


@dataclass(frozen=True)
class OpenSmile:
    """The 25 low-level descriptors of eGeMAPSv02, 100 steps per second, by openSMILE.

    Loudness, spectral shape, pitch, jitter, shimmer and formants, smoothed over three steps
    (Eyben et al., IEEE Transactions on Affective Computing 2016); pitch and what depends on it are
    0 where there is no voice. The package, in the extra ``opensmile``, may be used for research and
    at home only: **its licence forbids commercial use** without an agreement with its maker,
    audEERING. :class:`LogMel` has no such terms.

    Example:
        >>> OpenSmile().columns[10]  # doctest: +SKIP
        'F0semitoneFrom27.5Hz_sma3nz [semitones]'
    """

    @property
    def columns(self) -> list[str]:
        """The name of each column, with its unit where it has one."""
        return [
            name + next((f" [{u}]" for head, u in _UNITS.items() if name.startswith(head)), "")
            for name in _smile().feature_names
        ]

    def __call__(
        self, samples: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return features and times of a block."""
        if len(samples) < _SHORTEST:
            return np.empty((0, len(self.columns)), np.float32), np.empty(0)
        frame = _smile().process_signal(samples, RATE)
        times = frame.index.get_level_values("start").total_seconds().to_numpy()
        return frame.to_numpy(np.float32), times


@cache
def _smile() -> Any:
    smile = package("opensmile", "opensmile")
    return smile.Smile(
        feature_set=smile.FeatureSet.eGeMAPSv02,
        feature_level=smile.FeatureLevel.LowLevelDescriptors,
    )
