"""What all tests share: one thread a worker, a seed, the settings of hypothesis."""

import os

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # two workers share two cores
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
