"""What pages hold of the entries written to them: floats rounded to the state's dtype, or 8 bits with a scale.

Each head of an entry in 8 bits has a scale in f32, its largest magnitude over the greatest value of the format: 127 for
i8, 448 for f8 (e4m3fn, OCP 8-bit Floating Point Specification 1.0). Every device computes codes and scales by the same
f32 operations, so that they agree to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoc.compiler.ir.ops.pointwise import cast_array
from echoc.compiler.ir.types import DType

Array = NDArray[Any]
GREATEST = {DType.I8: 127.0, DType.F8: 448.0}
LEAST = np.float32(2.0**-100)  # an entry whose values are all below it is held as zeros


def round_f8(x: Array) -> Array:
    """The nearest e4m3fn, ties to even; the greatest beyond it; NaN stays NaN. float32 in and out."""
    x = np.asarray(x, np.float32)
    size = np.minimum(np.abs(x), np.float32(448.0))
    _, exponent = np.frexp(size)
    unit = np.ldexp(np.float32(1.0), np.maximum(exponent - 4, -9))
    return np.asarray(np.copysign(np.rint(size / unit) * unit, x), np.float32)


def quantise(values: Array, dtype: DType) -> tuple[Array, Array]:
    """float32 codes [..., D] and scales [..., 1] of entries [..., D]; a scale is not finite where a value is not."""
    values = np.asarray(values, np.float32)
    greatest = np.float32(GREATEST[dtype])
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        most = np.max(np.abs(values), axis=-1, keepdims=True)  # NaN where there is one
        small = most < LEAST
        scale = np.where(small, np.float32(0.0), most * (np.float32(1.0) / greatest))
        usable = np.isfinite(most) & ~small
        inverse = np.where(usable, np.float32(1.0) / np.where(usable, scale, np.float32(1.0)), np.float32(0.0))
        scaled = np.where(usable, values * inverse, np.float32(0.0))
    codes = np.rint(scaled) if dtype is DType.I8 else round_f8(scaled)
    return codes.astype(np.float32), scale.astype(np.float32)


def held(values: Array, dtype: DType) -> Array:
    """Entries [..., heads, D] as they are read back from pages of `dtype`."""
    if dtype not in GREATEST:
        return cast_array(values, dtype)
    codes, scale = quantise(values, dtype)
    with np.errstate(invalid="ignore"):
        return np.asarray(codes * scale, np.float32)
