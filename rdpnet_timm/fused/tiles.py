"""AMX tiles as operations in compiled code: what multiplies bfloat16 on Intel's CPUs that have them.

A tile is 16 rows of 64 bytes: 16 pairs of bfloat16 values, or 16 float32 sums. One instruction multiplies two tiles and
adds to a third. Here two tiles of ``a`` meet two of ``b``, so that four loads serve four products, and four tiles hold
32 by 32 sums. A loop begins with :func:`configure` and ends with :func:`release`.
"""

import ctypes
import platform
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from .jit import compiled_part
from .lanes import FEATURES, HAS_BFLOAT16, address, intrinsic

__all__ = ["add_products", "are_usable", "configure", "release", "shapes", "store_sums", "transpose", "zero_sums"]

PAIRS = 16  # that a row holds, and rows of a tile
SUMS = 2 * PAIRS  # along either edge
_SYSCALL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


@cache
def are_usable() -> bool:
    """Whether the CPU has tiles that multiply bfloat16, and Linux, which is asked, gives them to this process."""
    has_tiles = HAS_BFLOAT16 and {"amx-tile", "amx-bf16"} <= FEATURES
    if not has_tiles or platform.system() != "Linux":
        return False
    return ctypes.CDLL(None).syscall(_SYSCALL, _REQUEST, _TILE_DATA) == 0


_INT, _BYTE = ir.IntType(64), ir.IntType(8)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    """Add the instruction that LLVM calls ``llvm.x86.<name>``; a Python number is a tile's."""
    values = [_BYTE(each) if isinstance(each, int) else each for each in arguments]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(numba.core.cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


def _bytes_at(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.bitcast(address(context, builder, array_type, array, index), _BYTE.as_pointer())


@compiled_part
def shapes(pairs: int) -> Any:
    """The shapes of all tiles for products over ``pairs`` pairs of values, as the instruction wants them."""
    table = np.zeros(64, np.uint8)
    table[0] = 1  # the only palette
    for tile in range(8):  # sums, a, b
        table[16 + 2 * tile] = 4 * pairs if 4 <= tile < 6 else 64  # bytes of a row
        table[48 + tile] = pairs if tile >= 6 else PAIRS  # rows
    return table


@intrinsic
def configure(typing: Any, table: Any) -> Any:
    """Give the tiles their :func:`shapes`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _call(builder, "ldtilecfg", _bytes_at(context, builder, table, values[0], _INT(0)))
        return context.get_dummy_value()

    return types.void(table), generate


@intrinsic
def release(typing: Any) -> Any:
    """Give the tiles back: a thread without any is switched faster."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def zero_sums(typing: Any) -> Any:
    """Begin 32 by 32 sums."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for tile in range(4):
            _call(builder, "tilezero", tile)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def add_products(typing: Any, a: Any, i: Any, lower: Any, row_a: Any, b: Any, j: Any, right: Any, row_b: Any) -> Any:
    """Add the products of 32 rows of ``a`` and 32 columns of ``b``, both arrays of pairs as int32.

    The rows begin at element ``i`` and, the lower half, ``lower`` behind it, ``row_a`` apart; a row of ``b``, which
    holds a pair for every column, at ``j``, and, its right half, ``right`` behind it.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for first, kind, (array, index, other, row) in ((4, a, values[:4]), (6, b, values[4:])):
            for tile, element in ((first, index), (first + 1, builder.add(index, other))):
                pointer = _bytes_at(context, builder, kind, array, element)
                _call(builder, "tileloadd64", tile, pointer, builder.mul(row, _INT(4)))
        for tile in range(4):
            _call(builder, "tdpbf16ps", tile, 4 + tile // 2, 6 + tile % 2)
        return context.get_dummy_value()

    return types.void(a, *3 * (types.intp,), b, *3 * (types.intp,)), generate


@intrinsic
def store_sums(typing: Any, sums: Any) -> Any:
    """Write the sums to ``sums``, 32 by 32 float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for tile in range(4):
            start = _INT(tile // 2 * PAIRS * SUMS + tile % 2 * PAIRS)
            _call(builder, "tilestored64", tile, _bytes_at(context, builder, sums, values[0], start), _INT(4 * SUMS))
        return context.get_dummy_value()

    return types.void(sums), generate


@intrinsic
def transpose(typing: Any, a: Any, i: Any, row_a: Any, out: Any, j: Any, row_out: Any) -> Any:
    """Write a tile of ``a``, at element ``i`` and with rows ``row_a`` apart, as columns of ``out``; both int32."""
    vector = ir.VectorType(ir.IntType(32), PAIRS)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def pointer(number: int, kind: Any, array: Any, index: Any, row: Any) -> Any:
            element = builder.add(index, builder.mul(row, _INT(number)))
            return builder.bitcast(address(context, builder, kind, array, element), vector.as_pointer())

        rows = [builder.load(pointer(number, a, *values[:3]), align=4) for number in range(PAIRS)]
        for step in (1, 2, 4, 8):  # blocks of so many rows and columns change places across the diagonal
            upper = [c if c & step == 0 else PAIRS + c - step for c in range(PAIRS)]
            lower = [c + step if c & step == 0 else PAIRS + c for c in range(PAIRS)]
            for r in range(PAIRS):
                if r & step == 0:
                    pair = rows[r], rows[r + step]
                    rows[r], rows[r + step] = (
                        builder.shuffle_vector(*pair, ir.Constant(vector, order)) for order in (upper, lower)
                    )
        for number, value in enumerate(rows):
            builder.store(value, pointer(number, out, *values[3:]), align=4)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, out, types.intp, types.intp), generate
