"""Scalars of compiled loops: a float32 and its bits, and bfloat16 as the uint16 of its bits, which numba has no type for.

numba keeps the machine code of common/kernels.py by that file's time alone: whoever changes this one touches that one, too.
"""

from __future__ import annotations

from typing import Any  # numba has no types

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload


def number(_element: Any) -> Any:
    """Of an array's element in a compiled loop: a float32 itself, or the float32 whose upper half a uint16 is."""
    raise NotImplementedError


def rounded(_value: Any, _element: Any) -> Any:
    """In a compiled loop, a float32 as an array's element of the kind of the second one."""
    raise NotImplementedError


@intrinsic  # type: ignore[untyped-decorator]
def float_of(_typing: Any, _bits: Any) -> Any:
    """The float32 with these uint32 bits."""
    return types.float32(types.uint32), lambda _context, builder, _signature, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(_typing: Any, _value: Any) -> Any:
    """The uint32 bits of a float32."""
    return types.uint32(types.float32), lambda _context, builder, _signature, values: builder.bitcast(values[0], ir.IntType(32))


@overload(number, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _number_of(element: Any) -> Any:
    if element is types.float32:
        return lambda element: element
    return lambda element: float_of(np.uint32(element) << np.uint32(16))


@overload(rounded, inline="always", strict=False)  # type: ignore[untyped-decorator]
def _rounded_to(_value: Any, element: Any) -> Any:
    if element is types.float32:
        return lambda _value, element: _value  # noqa: ARG005  # numba asks for both names
    return lambda _value, element: _bfloat16_bits(_value)  # noqa: ARG005


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _bfloat16_bits(value: Any) -> Any:
    """To the nearest, ties to even; a not-a-number that arithmetic makes has room for the carry."""
    bits = bits_of(value)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
