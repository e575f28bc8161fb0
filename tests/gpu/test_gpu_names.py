"""A loop of a Triton kernel may not give a name that stands before it another type: every name is given once."""

from __future__ import annotations

import re

import pytest
from test_attention import CASES

from echoc.compiler.targets.gpu.lower import lower
from echoc.compiler.targets.gpu.render import Device

NUMBERED = re.compile(r"^\s*([a-z]+\d+) = ", re.MULTILINE)


@pytest.mark.parametrize("name", list(CASES))
def test_the_query_and_an_inlined_body_share_no_names(name: str) -> None:
    kernels = lower(CASES[name].program, "f32", 32, Device("cuda")).kernels
    attends = [k for k in kernels.values() if k.family in ("attend_prefill", "attend_decode")]
    assert attends
    for kernel in attends:
        query, loop, _ = kernel.source.partition("for start in ")
        before, inside = NUMBERED.findall(query), NUMBERED.findall(loop)
        assert not set(before) & set(inside), kernel.name
