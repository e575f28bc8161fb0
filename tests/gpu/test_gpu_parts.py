"""Products whose K is taken in parts are summed by the norm or the append behind them, not by a kernel of their own."""

from __future__ import annotations

import pytest
from device import port
from test_gpu_inline import attention, run
from test_gpu_matmul import check, matmul, weight

from echoc.compiler.ir import make, symbol

T = symbol("T")


@pytest.mark.parametrize("weights_dtype", ["bf16", "int8"])
def test_a_norm_sums_the_parts_of_the_product_before_it(weights_dtype: str) -> None:
    total = make("add", matmul(port("x", T, 1040), weight("w", 72, 1040)), port("r", T, 72))
    square = make("sum", make("mul", total, total), axes=(1,))
    size = make("reshape", make("rsqrt", make("add", square, make("const", value=0.5, dtype="f32"))), shape=(T, 1))
    norm = make("mul", make("mul", total, size), weight("scale", 72))
    outputs = {"total": total, "norm": norm, "next": matmul(norm, weight("v", 16, 72))}
    launches = check(outputs, 18, 64, weights_dtype)
    assert [k.family for k in launches.kernels] == ["gemm", "rows", "gemm"]


def test_an_append_sums_the_parts_of_the_products_before_it() -> None:
    families = [k.family for k in run(attention(width=1040), 64, width=1040).kernels]
    assert [f for f in families if f != "rows"] == ["gemm", "append", "attend_decode", "attend_merge"]
