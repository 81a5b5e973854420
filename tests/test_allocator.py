"""Freed memory stays in the process where glibc can be told so, and nothing happens elsewhere."""

import ctypes
import os
import subprocess
import sys

import pytest

from rdpnet_timm.allocator import keep_freed_memory, peak_memory

SIZE = 64 << 20  # bytes of a tensor, above glibc's 32 MB
MEMORY = f"""
import ctypes, torch
from rdpnet_timm.allocator import keep_freed_memory

class MallInfo(ctypes.Structure):  # of glibc's malloc.h
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = MallInfo
before, kept = mallinfo(), keep_freed_memory()
tensor = torch.ones({SIZE} // 4)
mapped = mallinfo().hblkhd - before.hblkhd
del tensor
print(kept, mapped, mallinfo().arena - before.arena)
"""


def kept_mapped_and_heap(variable: str) -> "tuple[bool, int, int]":
    """What the function says, the bytes mapped for a tensor of 64 MB, and by how much the heap is larger after it."""
    environment = {**os.environ, "RDPNET_MALLOPT": variable}
    printed = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True
    )
    kept, mapped, heap = printed.stdout.split()
    return kept == "True", int(mapped), int(heap)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc 2.33 or later")
def test_a_large_tensor_lies_on_the_heap_which_keeps_its_memory_once_it_is_freed() -> None:
    kept, mapped, heap = kept_mapped_and_heap("1")
    assert kept and mapped <= 0 and heap >= SIZE, (mapped, heap)
    kept, mapped, heap = kept_mapped_and_heap("0")  # what glibc does by itself: a mapping, which goes with the tensor
    assert not kept and mapped >= SIZE and heap < SIZE, (mapped, heap)


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    def no_library(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert keep_freed_memory() is False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_the_peak_is_at_least_what_is_held_and_stays() -> None:
    held = bytearray(os.urandom(1 << 20)) * 64  # pages that are written
    peak = peak_memory()
    assert peak >= len(held)
    del held
    assert peak_memory() >= peak
