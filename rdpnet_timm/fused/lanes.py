"""A vector register as a Numba type: so many neighbouring values of an array, worked on at once.

LLVM vectorises plain loops as well, but with many arrays and few channels it spends its time on checking that they do
not overlap, and it keeps no sums in registers. Here a loop says what a register holds. A register is as wide as this
CPU has them, 64 bytes with AVX-512, 32 with AVX2, 16 elsewhere (NEON, SSE); LLVM translates it for any other.
"""

import operator
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.extending import models, overload, register_model

__all__ = ["accumulate", "broadcast", "lane_count", "load", "open_relu", "prefetch", "relu", "store", "zero"]


intrinsic: Any = numba.extending.intrinsic  # called without the typing context that its functions are declared with


def _register_bytes() -> int:
    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


REGISTER = _register_bytes()


class Lanes(types.Type):
    """As many float32 or float64 values as a register holds."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.count = REGISTER * 8 // dtype.bitwidth
        super().__init__(f"lanes({dtype} x {self.count})")


def _vector(lanes: Lanes) -> Any:
    return ir.VectorType(ir.DoubleType() if lanes.dtype == types.float64 else ir.FloatType(), lanes.count)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, _vector(lanes))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to element ``index`` of a C-contiguous array, counted through all of its dimensions."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _bytes(lanes: Lanes) -> int:
    return lanes.dtype.bitwidth // 8


@intrinsic
def lane_count(typing: Any, array: Any) -> Any:
    """How many values of the array's dtype a register holds."""
    count = Lanes(array.dtype).count
    return types.intp(array), lambda context, builder, signature, values: context.get_constant(types.intp, count)


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """Zeros of the array's dtype."""
    lanes = Lanes(array.dtype)
    return lanes(array), lambda context, builder, signature, values: ir.Constant(_vector(lanes), None)


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The values of ``array`` from element ``index``."""
    lanes = Lanes(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _address(context, builder, array, *values)
        return builder.load(builder.bitcast(pointer, _vector(lanes).as_pointer()), align=_bytes(lanes))

    return lanes(array, types.intp), generate


@intrinsic
def broadcast(typing: Any, array: Any, index: Any) -> Any:
    """Element ``index`` of ``array`` in every lane."""
    lanes = Lanes(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        element = builder.load(_address(context, builder, array, *values))
        integer = ir.IntType(32)
        first = builder.insert_element(ir.Constant(_vector(lanes), ir.Undefined), element, integer(0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(integer, lanes.count), [0] * lanes.count))

    return lanes(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write ``value`` to ``array`` from element ``index``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _address(context, builder, array, *values[:2])
        builder.store(values[2], builder.bitcast(pointer, _vector(value).as_pointer()), align=_bytes(value))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def accumulate(typing: Any, totals: Any, index: Any, value: Any) -> Any:
    """Add ``value`` to the float64 array ``totals`` from element ``index``."""
    wide = ir.VectorType(ir.DoubleType(), value.count)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.bitcast(_address(context, builder, totals, *values[:2]), wide.as_pointer())
        added = values[2] if value.dtype == types.float64 else builder.fpext(values[2], wide)
        builder.store(builder.fadd(builder.load(pointer, align=8), added), pointer, align=8)
        return context.get_dummy_value()

    return types.void(totals, types.intp, value), generate


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Say that element ``index`` will be read soon; it need not exist."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        call = numba.core.cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        address = builder.bitcast(_address(context, builder, array, *values), pointer)
        builder.call(call, [address, integer(0), integer(3), integer(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _compare_with_zero(builder: Any, value: Any, ordered: bool) -> Any:
    compare = builder.fcmp_ordered if ordered else builder.fcmp_unordered
    return compare(">", value, ir.Constant(value.type, None))


@intrinsic
def relu(typing: Any, value: Any) -> Any:
    """``value`` where it is positive or NaN, else 0."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(
            _compare_with_zero(builder, values[0], False), values[0], ir.Constant(_vector(value), None)
        )

    return value(value), generate


@intrinsic
def open_relu(typing: Any, gradient: Any, out: Any) -> Any:
    """``gradient`` where the ReLU that gave ``out`` was open, else 0."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        is_open = _compare_with_zero(builder, values[1], True)
        return builder.select(is_open, values[0], ir.Constant(_vector(gradient), None))

    return gradient(gradient, out), generate


def _binary(name: str) -> Any:
    @intrinsic
    def function(typing: Any, a: Any, b: Any) -> Any:
        # "contract": a product and a sum may become one instruction
        return a(a, b), lambda context, builder, signature, values: getattr(builder, name)(*values, flags=("contract",))

    return function


_add, _multiply = _binary("fadd"), _binary("fmul")


@overload(operator.add)
def _overload_add(a, b):  # Numba compares this signature with that of the implementation
    if isinstance(a, Lanes) and a == b:
        return lambda a, b: _add(a, b)
    return None


@overload(operator.mul)
def _overload_multiply(a, b):
    if isinstance(a, Lanes) and a == b:
        return lambda a, b: _multiply(a, b)
    return None
