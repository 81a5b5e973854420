"""Compiled functions on several threads, those of torch itself where that is possible.

torch's OpenMP workers wait for their next work by spinning, so that a second pool of threads on the same cores fights
with them: with Python's own pool a fused step takes 1.2 to 1.5 times as long. GNU's and LLVM's OpenMP libraries both
have the entry point ``GOMP_parallel``, through which compiled code hands a function to the team of the calling thread.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Callable, List, Optional

import torch

__all__ = ["over_parts"]

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_compiled_for: "set[Any]" = set()


@cache
def _openmp() -> Optional[Any]:
    """The OpenMP library that torch has loaded, or None."""
    try:
        library = ctypes.CDLL(None)  # every library of the process; no name of one on Windows
        library.GOMP_parallel.restype = None
        library.GOMP_parallel.argtypes = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.omp_get_thread_num.restype = ctypes.c_int
        library.omp_get_num_threads.restype = ctypes.c_int
    except (AttributeError, OSError, TypeError):
        return None
    return library


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rdpnet")


if hasattr(os, "register_at_fork"):  # not on Windows; a child process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def over_parts(function: Any, count: int, *arguments: Any) -> None:
    """Call ``function(start, stop, part, *arguments)`` for the parts of ``range(count)``, one a thread.

    There are at most ``torch.get_num_threads()`` parts, which ``part`` numbers. ``function`` is compiled with
    ``nogil``, and writes nothing that another part reads or writes.

    Raises:
        Exception: whatever ``function`` raises in one of its parts.
    """
    parts = min(torch.get_num_threads(), count)
    if parts <= 1:
        function(0, count, 0, *arguments)
        return
    types = (function, _dtypes(arguments))
    if types not in _compiled_for:  # by this thread, before several would meet in the compiler
        function(0, 0, 0, *arguments)
        _compiled_for.add(types)

    def run(part: int) -> None:
        function(count * part // parts, count * (part + 1) // parts, part, *arguments)

    openmp = _openmp()
    if openmp is None:
        list(_pool(parts).map(run, range(parts)))
    else:
        _on_openmp_team(openmp, run, parts)


def _dtypes(arguments: Any) -> Any:
    """What compiled code for ``arguments`` depends on; tuples of arrays are told apart as well."""
    return tuple(_dtypes(each) if isinstance(each, tuple) else getattr(each, "dtype", None) for each in arguments)


def _on_openmp_team(openmp: Any, run: Callable[[int], None], parts: int) -> None:
    """Call ``run(part)`` for every part on the calling thread's OpenMP team, which may be smaller than asked for."""
    errors: List[BaseException] = []

    def work(_: Any) -> None:
        try:
            for part in range(openmp.omp_get_thread_num(), parts, openmp.omp_get_num_threads()):
                run(part)
        except BaseException as error:  # ctypes would print it and go on
            errors.append(error)

    openmp.GOMP_parallel(_CALLBACK(work), None, parts, 0)
    if errors:
        raise errors[0]
