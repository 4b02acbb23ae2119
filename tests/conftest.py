"""One thread per test process: tiny models are quicker on one, and results do not depend on the machine's cores."""

import torch

torch.set_num_threads(1)
