"""Freed memory stays in the process where glibc can be told so, and nothing happens elsewhere."""

import ctypes
import os
import subprocess
import sys

import pytest

from rdpnet_timm.allocator import keep_freed_memory

FAULTS = """
import resource, torch
from rdpnet_timm.allocator import keep_freed_memory
kept = keep_freed_memory()
for _ in range(3):
    torch.ones(16 << 20)  # 64 MB, freed at once; the heap grows until one fits
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def kept_and_faults(variable: str) -> "tuple[bool, int]":
    """What the function says, and the page faults of ten tensors of 64 MB, in a fresh process."""
    environment = {**os.environ, "RDPNET_MALLOPT": variable}
    printed = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    kept, faults = printed.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
def test_large_tensors_cause_no_page_faults_once_freed_memory_is_kept() -> None:
    kept, faults = kept_and_faults("1")
    not_kept, many_faults = kept_and_faults("0")
    assert kept and not not_kept
    assert faults < many_faults / 3, (faults, many_faults)  # 16384 each time, or once or twice


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    def no_library(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert keep_freed_memory() is False
