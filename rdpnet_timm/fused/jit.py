"""Compiling by Numba, with a cache on disk where there is a place for one."""

import hashlib
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, FrozenSet

import numba
from numba.core.codegen import get_host_cpu_features

__all__ = ["compiled", "compiled_part", "compiled_sums", "cpu_features"]

_config: Any = numba.config  # whose settings are made from the environment
if _config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and without compiling there is no fused step")

DIGEST = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def cpu_features() -> FrozenSet[str]:
    """What the CPU that Numba compiles for has: this one, or what NUMBA_CPU_NAME or NUMBA_CPU_FEATURES say."""
    given = _config.CPU_FEATURES
    features = get_host_cpu_features() if given is None else given
    return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))


def _compile(function: Callable[..., Any], fastmath: Any, **more: Any) -> Any:
    options = dict(nogil=True, error_model="numpy", boundscheck=False, fastmath=fastmath, **more)
    try:
        found = numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's can be written: compile in every process
        return numba.njit(function, **options)
    with suppress(AttributeError):
        cache: Any = found._cache  # type: ignore[attr-defined]
        file = cache._cache_file
        # Numba numbers the files of a function, one for each signature. Of two processes that start at once one may
        # write its code for float64 into the file in which the other's index looks for float32, for good. So they share
        # no names.
        file._data_name_pattern = file._data_name_pattern.replace("{number", f"{uuid.uuid4().hex[:16]}.{{number")
        # Numba takes code for current as long as the function's own file is; but parts of others are compiled into it.
        file._source_stamp = (file._source_stamp, DIGEST)
        # Where there is no more room for a file, or it cannot be read, the process compiles for itself.
        cache._guard_against_spurious_io_errors = partial(suppress, OSError)
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
