"""Compiling by Numba, with a cache on disk where there is a place for one."""

import uuid
from contextlib import suppress
from typing import Any, Callable

import numba

__all__ = ["compiled", "compiled_part", "compiled_sums"]


def _compile(function: Callable[..., Any], fastmath: Any, **more: Any) -> Any:
    options = dict(nogil=True, error_model="numpy", boundscheck=False, fastmath=fastmath, **more)
    try:
        found = numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's can be written: compile in every process
        return numba.njit(function, **options)
    # Numba numbers the files of a function, one for each signature. Of two processes that start at once one may write
    # its code for float64 into the file in which the other's index looks for float32, for good. So they share no names.
    with suppress(AttributeError):
        file: Any = found._cache._cache_file  # type: ignore[attr-defined]
        file._data_name_pattern = file._data_name_pattern.replace("{number", f"{uuid.uuid4().hex[:16]}.{{number")
    return found


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that works element by element; a product and a sum may become one instruction."""
    return _compile(function, {"contract"})


def compiled_part(function: Callable[..., Any]) -> Any:
    """Compile a function that compiled ones call, always into these.

    As a function of its own there would be two of it, which may round differently: one optimised with its caller, which
    the cache on disk holds, and one optimised alone, which the process that compiles both goes on with. Then a run that
    goes on in another process does not end with the same bits.
    """
    return _compile(function, {"contract"}, forceinline=True)


def compiled_sums(function: Callable[..., Any]) -> Any:
    """Compile a function that sums along rows; the order of its sums is the compiler's, so that it can vectorise."""
    return _compile(function, {"contract", "reassoc", "nsz"})
