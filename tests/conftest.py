"""Settings of the test run."""

import torch

# The tensors are small: a second thread only waits for the first.
torch.set_num_threads(1)
