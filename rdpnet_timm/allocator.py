"""glibc's allocator, told to keep the memory of freed tensors for a training on a CPU.

glibc gives every freed block above 32 MB back to the kernel, and a training whose maps are that large (224 pixels from
a batch of about 10, segmentation at 512) then spends up to half of its time in faulting the same pages in again.
"""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory", "peak_memory"]

# the numbers of these settings in glibc's malloc.h; M_ARENA_MAX and the rest stay as they are
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1  # mallopt takes an int
TOP_PAD = 64 << 20  # bytes by which the heap grows at a time


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, for the next tensor, rather than give it back to the kernel.

    The process then holds, until it ends, what it has needed at its peak and more, for what is kept lies in pieces: 1.2
    to 1.3 times as much where it was measured. Nothing happens, without a word, where the C library is not glibc, or
    where the environment variable ``RDPNET_MALLOPT`` is 0.

    Returns:
        Whether the allocator was told.
    """
    if os.environ.get("RDPNET_MALLOPT") == "0":
        return False
    try:
        libc = ctypes.CDLL(None)  # what the process has loaded: None is no name of a library on Windows
        libc.gnu_get_libc_version  # noqa: B018  (musl has a mallopt that does nothing)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, TOP_PAD))
    accepted = [mallopt(setting, value) == 1 for setting, value in settings]  # every one is set, whatever came before
    return all(accepted)


def peak_memory() -> int:
    """Bytes of memory that this process has held at most; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
