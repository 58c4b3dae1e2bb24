"""One thread, no denormals, a fixed seed: so that a test gives the same numbers each time, at full speed."""

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
torch.set_flush_denormal(True)  # decaying membranes become denormal, and CPUs crawl


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # the legacy generator is the one a host may draw from
    torch.manual_seed(0)
