"""One thread for every test: what is asserted bit for bit holds at a fixed number of threads (and small tensors are faster so)."""

import ranks

ranks.serve()               # forks; torch is not here yet

import torch

torch.set_num_threads(1)
