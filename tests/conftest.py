"""What all tests share: one thread a worker, a seed, the settings of hypothesis, the order."""

import os
from typing import Iterator, List

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # two workers share two cores
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """What a test sets, or a command that it calls, is not for the next one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Slow tests first: no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
