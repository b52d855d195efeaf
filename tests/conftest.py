"""What all tests share."""

import torch

# The tables of the tests are small: a second thread only waits for the first, and for long where cores are shared.
torch.set_num_threads(1)
