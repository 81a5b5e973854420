"""A vector register as a Numba type: so many neighbouring values of an array, worked on at once.

LLVM vectorises plain loops as well, but with many arrays and few channels it spends its time on checking that they do
not overlap, and it keeps no sums in registers. Here a loop says what a register holds. A register is as wide as the
CPU has them, 64 bytes with AVX-512, 32 with AVX2, 16 elsewhere (NEON, SSE); LLVM translates it for any other.
"""

import operator
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.extending import models, overload, register_model

from .jit import cpu_features

__all__ = [
    "accumulate",
    "add_product",
    "address",
    "broadcast",
    "intrinsic",
    "lane_count",
    "load",
    "load_pairs",
    "open_relu",
    "prefetch",
    "relu",
    "store",
    "zero",
]


intrinsic: Any = numba.extending.intrinsic  # called without the typing context that its functions are declared with


FEATURES = cpu_features()
REGISTER = 64 if "avx512f" in FEATURES else 32 if "avx" in FEATURES else 16
HAS_BFLOAT16 = REGISTER == 64 and "avx512bf16" in FEATURES
if HAS_BFLOAT16:  # its instructions are written as assembly: LLVM's names for them change with its versions
    llvm.initialize_native_asmparser()


class Lanes(types.Type):
    """As many float32 or float64 values as a register holds, or pairs of bfloat16 values as int32."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.count = REGISTER * 8 // dtype.bitwidth
        super().__init__(f"lanes({dtype} x {self.count})")


def _lanes(array: Any) -> Lanes:
    """What a register holds of ``array``: its values, those of bfloat16 as float32."""
    return Lanes(types.float32 if array.dtype == types.int16 else array.dtype)


_ELEMENTS = {types.float64: ir.DoubleType(), types.float32: ir.FloatType(), types.int32: ir.IntType(32)}


def _vector(lanes: Lanes) -> Any:
    return ir.VectorType(_ELEMENTS[lanes.dtype], lanes.count)


def _integers(lanes: Lanes, bits: int) -> Any:
    return ir.VectorType(ir.IntType(bits), lanes.count)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, _vector(lanes))


def address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to element ``index`` of a C-contiguous array, counted through all of its dimensions.

    Raises:
        TypeError: the array is of another layout, while the function that has it is compiled.
    """
    if array_type.layout != "C":
        raise TypeError(
            f"loops by registers walk arrays as they lie in memory, expected a C-contiguous one, got {array_type}"
        )
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _read(builder: Any, pointer: Any, vector: Any) -> Any:
    """The vector at ``pointer``, which is aligned as its elements are."""
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=_bytes(vector))


def _write(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=_bytes(value.type))


def _bytes(vector: Any) -> int:
    return {ir.DoubleType(): 8, ir.IntType(16): 2}.get(vector.element, 4)


@intrinsic
def lane_count(typing: Any, array: Any) -> Any:
    """How many values of the array's dtype a register holds."""
    count = _lanes(array).count
    return types.intp(array), lambda context, builder, signature, values: context.get_constant(types.intp, count)


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """Zeros to which values of the array, or products of its pairs, are added."""
    lanes = Lanes(types.float64 if array.dtype == types.float64 else types.float32)
    return lanes(array), lambda context, builder, signature, values: ir.Constant(_vector(lanes), None)


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The values of ``array`` from element ``index``."""
    lanes = _lanes(array)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = address(context, builder, array, *values)
        if array.dtype != types.int16:
            return _read(builder, pointer, _vector(lanes))
        wide = builder.zext(_read(builder, pointer, _integers(lanes, 16)), _integers(lanes, 32))
        sixteen = ir.Constant(wide.type, [16] * lanes.count)
        return builder.bitcast(builder.shl(wide, sixteen), _vector(lanes))

    return lanes(array, types.intp), generate


@intrinsic
def load_pairs(typing: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
    """The bfloat16 values of ``a`` from element ``i``, each in a pair with one of ``b`` from ``j``."""
    lanes = Lanes(types.int32)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointers = address(context, builder, a, *values[:2]), address(context, builder, b, *values[2:])
        low, high = (
            builder.zext(_read(builder, pointer, _integers(lanes, 16)), _integers(lanes, 32)) for pointer in pointers
        )
        return builder.or_(low, builder.shl(high, ir.Constant(high.type, [16] * lanes.count)))

    return lanes(a, types.intp, b, types.intp), generate


@intrinsic
def broadcast(typing: Any, array: Any, index: Any) -> Any:
    """Element ``index`` of ``array`` in every lane."""
    lanes = _lanes(array)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        element = builder.load(address(context, builder, array, *values))
        integer = ir.IntType(32)
        first = builder.insert_element(ir.Constant(_vector(lanes), ir.Undefined), element, integer(0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(integer, lanes.count), [0] * lanes.count))

    return lanes(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write ``value`` to ``array`` from element ``index``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        written = values[2]
        if array.dtype == types.int16:  # rounds to the nearest
            kind = ir.FunctionType(_integers(value, 16), [written.type])
            written = builder.asm(kind, "vcvtneps2bf16 $1, $0", "=v,v", [written], False)
        _write(builder, written, address(context, builder, array, *values[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def accumulate(typing: Any, totals: Any, index: Any, value: Any) -> Any:
    """Add ``value`` to the float64 array ``totals`` from element ``index``."""
    wide = ir.VectorType(ir.DoubleType(), value.count)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.bitcast(address(context, builder, totals, *values[:2]), wide.as_pointer())
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
        start = builder.bitcast(address(context, builder, array, *values), pointer)
        builder.call(call, [start, integer(0), integer(3), integer(1)])  # to read, into every cache, data
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


@intrinsic
def _add_products_of_pairs(typing: Any, total: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(_vector(total), [value.type for value in values])
        return builder.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", values, False)

    return total(total, a, b), generate


def add_product(total: Any, a: Any, b: Any) -> Any:
    """``total + a * b``; of pairs, both products."""
    raise NotImplementedError  # in compiled code alone


@overload(add_product)
def _overload_add_product(total, a, b):
    if not isinstance(a, Lanes) or a != b:
        return None
    if a.dtype == types.int32:
        return lambda total, a, b: _add_products_of_pairs(total, a, b)
    return lambda total, a, b: _add(total, _multiply(a, b))


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
