"""Settings and fixtures of the test run."""

import pytest
import torch
from jaxtyping import config

# The tensors are small: a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the run-time checks of types off, which would answer bad input before our own."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
