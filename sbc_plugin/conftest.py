"""One thread unless asked for more, no denormals, a fixed seed: the same numbers each time, at full speed."""

import os
import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch

HOSTS = {"norse": "norse", "nir": "nir", "torch_pruning": "torch_pruning", "brevitas": "brevitas", "sklearn": "demo"}
HOSTS |= {"neurobench": "neurobench"}
collect_ignore = [folder for host, folder in HOSTS.items() if find_spec(host) is None]  # cannot be imported

torch.set_num_threads(int(os.environ.get("SBC_TEST_THREADS", "1")))  # `make test-portable` takes two as well
torch.set_flush_denormal(True)  # decaying membranes become denormal, and CPUs crawl


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # the legacy generator is the one a host may draw from
    torch.manual_seed(0)
