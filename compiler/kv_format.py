"""In which formats keys and values are held: what may be asked for, and what is taken where nothing is."""

from __future__ import annotations

from dataclasses import dataclass

from echoc.compiler.ir import DType
from echoc.errors import CompileError

KV_DTYPES = {"f32": DType.F32, "bf16": DType.BF16, "f16": DType.F16, "int8": DType.I8, "fp8": DType.F8}
INTEGER_WEIGHTS = frozenset({"int8", "int4"})


@dataclass(frozen=True)
class KvFormat:
    """`dtype` of heads in general, `otherwise` (default: the same) of heads that gain nothing by 8 bits on a CPU."""

    dtype: DType
    otherwise: DType | None = None

    def of(self, *head_dims: int) -> DType:
        """The format of an attention whose keys and values have these sizes a head.

        Measured: below 32 the scales and the softmax outweigh the bytes saved, and values that are no rows of 16 are
        widened before they are used, which takes longer from 8 bits.
        """
        fits = all(size >= 32 and size % 16 == 0 for size in head_dims)
        return self.dtype if fits or self.otherwise is None else self.otherwise


def kv_format(asked: str | None, weights_dtype: str, narrow: bool) -> KvFormat:
    """What is asked for; else f32 for f32 weights, int8 for integer weights on a target that reads 8 bits faster
    (`narrow`), bf16 for all others.

    Raises: CompileError for a format that there is not.
    """
    if asked is not None:
        if asked not in KV_DTYPES:
            raise CompileError(f"unknown KV cache dtype {asked!r}; wanted one of {', '.join(KV_DTYPES)}")
        return KvFormat(KV_DTYPES[asked])
    wide = DType.F32 if weights_dtype == "f32" else DType.BF16
    return KvFormat(DType.I8, wide) if narrow and weights_dtype in INTEGER_WEIGHTS else KvFormat(wide)
