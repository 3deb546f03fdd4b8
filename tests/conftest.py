"""Settings and fixtures of the test run."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import config

# The tensors are small: a second thread only waits for the first, in processes of a test as well.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# The same examples in every run, and no word on how fast the machine is.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the run-time checks of types off, which would answer bad input before our own."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
