"""For every op of the table, programs that use it on several shapes and element types."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from device import Arrays, Case, port, program_of, random_array

from echoc.compiler.ir import DType, Node, make, symbol
from echoc.compiler.ir.ops.pointwise import cast_array
from echoc.compiler.ir.types import Dim, dim_value

T = symbol("T")
SYMBOLS = {"T": (1, 40)}
FLOATS = ("f32", "f64", "f16", "bf16")
INTS = ("i64", "i32", "i16", "i8", "u8")
EXACT = ("f32", "f64", "i64", "i32", "i16", "u8", "bool")
FLOAT_UNARY = ("exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "sin", "cos", "atan", "tanh", "erf", "sigmoid", "floor",
               "ceil", "round", "trunc")  # fmt: skip
POSITIVE = ("log", "log1p", "sqrt", "rsqrt", "pow")
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.5, -0.5, 3.0, 1e-30, -1e-30, 1e30, 88.0, -88.0]


class Builder:
    """Collects outputs of one program; ports get random values as they are made."""

    def __init__(self, name: str, tokens: int = 11) -> None:
        self.name = name
        self.generator = np.random.default_rng(zlib.crc32(name.encode()))
        self.symbols = {"T": tokens}
        self.outputs: dict[str, Node] = {}
        self.inputs: Arrays = {}
        self.weights: Arrays = {}

    def port(self, *shape: Dim, dtype: str = "f32", low: int | None = None, high: int | None = None,
             positive: bool = False, values: Any = None) -> Node:  # fmt: skip
        name = f"p{len(self.inputs)}"
        sizes = [dim_value(d, self.symbols) for d in shape]
        if values is not None:
            array = np.asarray(values, DType(dtype).numpy)
        elif low is not None:
            array = self.generator.integers(low, high, sizes).astype(DType(dtype).numpy)
        else:
            array = random_array(self.generator, sizes, dtype)
        if positive and DType(dtype).is_float:
            array = cast_array(np.abs(array) + 0.01, DType(dtype))
        self.inputs[name] = array
        return port(name, *shape, dtype=dtype)

    def weight(self, *shape: int) -> Node:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.generator.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return make("weight", name=name, shape=shape, dtype="f32")

    def out(self, *nodes: Node) -> None:
        for node in nodes:
            self.outputs[f"y{len(self.outputs)}"] = node

    def case(self) -> Case:
        mentioned = program_of(self.outputs, SYMBOLS)
        named = {p.name for p in mentioned.skin.ports}
        symbols = SYMBOLS if any("T" in p.type.symbols for p in mentioned.skin.ports if p.direction == "in") else {}
        inputs = {k: v for k, v in self.inputs.items() if k in named}
        return Case(self.name, program_of(self.outputs, symbols), inputs, self.weights)


def shapes() -> list[tuple[Dim, ...]]:
    return [(3, 7), (T, 5), (19,), (), (1, 1), (2, 3, 4), (T,)]


def unary(name: str, dtypes: Sequence[str]) -> Case:
    c = Builder(name)
    for dtype in dtypes:
        for shape in shapes() if dtype == dtypes[0] else shapes()[:1]:
            c.out(make(name, c.port(*shape, dtype=dtype, positive=name in POSITIVE)))
    if "f32" in dtypes:
        # the argument reduction of sine and cosine is made for angles, not for astronomy
        special = [v for v in SPECIAL if not np.isfinite(v) or abs(v) < 1e5] if name in ("sin", "cos") else SPECIAL
        c.out(make(name, c.port(len(special), values=special)))
    return c.case()


def binary(name: str, dtypes: Sequence[str]) -> Case:
    c = Builder(name)
    for dtype in dtypes:
        positive = name in POSITIVE

        def p(*shape: Dim, dtype: str = dtype, positive: bool = positive) -> Node:
            if name == "pow" and not DType(dtype).is_float:
                return c.port(*shape, dtype=dtype, low=0, high=4)
            return c.port(*shape, dtype=dtype, positive=positive)

        c.out(make(name, p(3, 7), p(3, 7)))
        if dtype == dtypes[0]:
            pairs: list[tuple[tuple[Dim, ...], tuple[Dim, ...]]] = [
                ((T, 5), (5,)), ((T, 1), (1, 6)), ((), (4,)), ((), ()), ((2, 1, 4), (3, 1)), ((T, 3), (T, 3)),
                ((T,), ()),
            ]  # fmt: skip
            c.out(*(make(name, p(*a), p(*d)) for a, d in pairs))
    if "f32" in dtypes and name != "pow":
        left, right = zip(*itertools.product(SPECIAL, SPECIAL), strict=True)
        for dtype in ("f32", "f64"):
            c.out(make(name, *(c.port(len(x), dtype=dtype, values=x) for x in (left, right))))
    return c.case()


def where() -> Case:
    c = Builder("where")
    for dtype in (*FLOATS, *INTS, "bool"):
        c.out(make("where", c.port(3, 7, dtype="bool"), c.port(3, 7, dtype=dtype), c.port(7, dtype=dtype)))
    c.out(make("where", c.port(T, 1, dtype="bool"), c.port(4), c.port(T, 4)))
    c.out(make("where", c.port(dtype="bool"), c.port(), c.port()))
    return c.case()


def cast(target: str) -> Case:
    c = Builder(f"cast_{target}")
    for source in (*FLOATS, *INTS, "bool"):
        positive = target == "u8"
        c.out(make("cast", c.port(T, 6, dtype=source, positive=positive), dtype=target))
    if target in ("i64", "f16", "bf16", "bool", "f64"):
        finite = [v for v in SPECIAL if np.isfinite(v)] if target == "i64" else SPECIAL
        c.out(make("cast", c.port(len(finite), values=finite), dtype=target))
    return c.case()


def random_bits() -> Case:
    c = Builder("random_bits")
    c.out(make("random_bits", c.port(dtype="i64", values=7), make("iota", size=33)))
    c.out(make("random_bits", c.port(T, 1, dtype="i64"), c.port(T, 9, dtype="i64"), c.port(9, dtype="i64")))
    ends = c.port(4, dtype="i64", values=[-(2**63), -1, 2**32, 2**63 - 1])
    bits = make("random_bits", make("reshape", ends, shape=(4, 1, 1)), make("reshape", ends, shape=(4, 1)), ends)
    c.out(bits)
    scaled = make("mul", make("cast", bits, dtype="f64"), make("const", value=2.0**-32, dtype="f64"))
    c.out(make("sum", make("mul", scaled, scaled), axes=(2,)))
    return c.case()


def leaves() -> Case:
    c = Builder("const")
    values: list[tuple[Any, str]] = [
        (1.5, "f32"), (float("nan"), "f32"), (float("-inf"), "f32"), (-0.0, "f64"), (2**62, "i64"), (-(2**63), "i64"),
        (-3, "i32"), (True, "bool"), (1e300, "f64"), (0.1, "f16"), (0.1, "f32"),
    ]  # fmt: skip
    c.out(*(make("broadcast", make("const", value=v, dtype=d), shape=(2, 3)) for v, d in values))
    c.out(make("const", value=2.5, dtype="f32"))
    c.out(c.port(2, 2))
    return c.case()


def iota() -> Case:
    c = Builder("iota")
    c.out(make("iota", size=9), make("iota", size=T), make("add", make("iota", size=T), c.port(T, dtype="i64")))
    c.out(make("reshape", make("iota", size=12), shape=(3, 4)))
    return c.case()


def weight() -> Case:
    c = Builder("weight")
    w = c.weight(4, 6)
    c.out(w, make("add", w, c.port(T, 1, 6)), make("transpose", w, perm=(1, 0)))
    for dtype in ("f16", "bf16", "f64", "i64", "bool"):
        name = f"typed_{dtype}"
        c.weights[name] = random_array(c.generator, (5,), dtype)
        c.out(make("weight", name=name, shape=(5,), dtype=dtype))
    return c.case()


def views(name: str) -> Case:
    c = Builder(name)
    for dtype in ("f32", "i64", "bool", "bf16"):
        x, y = c.port(2, 3, 4, dtype=dtype), c.port(T, 6, dtype=dtype)
        if name == "reshape":
            c.out(
                make("reshape", x, shape=(4, 6)), make("reshape", x, shape=(24,)), make("reshape", x, shape=(2, 1, 12))
            )
            c.out(make("reshape", y, shape=(T, 2, 3)), inner(make("reshape", y, shape=(T * 6, 1))))
            c.out(make("reshape", make("reshape", y, shape=(6 * T,)), shape=(2, T, 3)))
        if name == "transpose":
            c.out(*(make("transpose", x, perm=p) for p in itertools.permutations(range(3))))
            c.out(make("transpose", y, perm=(1, 0)))
        if name == "broadcast":
            c.out(make("broadcast", c.port(3, 1, dtype=dtype), shape=(2, 3, 4)))
            c.out(make("broadcast", c.port(dtype=dtype), shape=(T, 2)), make("broadcast", y, shape=(3, T, 6)))
        if name == "slice":
            c.out(make("slice", x, starts=(0, 1, 0), stops=(1, 3, 4), steps=(1, 1, 2)))
            c.out(make("slice", x, starts=(1, 0, 3), stops=(2, 3, 4), steps=(1, 2, 1)))
            c.out(make("slice", y, starts=(0, 2), stops=(T, 6), steps=(1, 3)))
        if name == "pad":
            fill = {"f32": -1.5, "i64": 3, "bool": True, "bf16": 0.5}[dtype]
            c.out(make("pad", x, low=(0, 1, 2), high=(0, 0, 1), value=fill))
            c.out(make("pad", x, low=(1, 0, 0), high=(2, 0, 0), value=fill))
            c.out(make("pad", y, low=(0, 1), high=(0, 2), value=fill))
            c.out(inner(make("pad", y, low=(2, 1), high=(1, 0), value=fill)))
        if name == "concat":
            z = c.port(2, 3, 4, dtype=dtype)
            c.out(*(make("concat", x, z, x, axis=a) for a in range(3)), make("concat", x, axis=0))
            c.out(make("concat", y, c.port(T, 3, dtype=dtype), c.port(T, 1, dtype=dtype), axis=1))
            c.out(inner(make("concat", y, c.port(2, 6, dtype=dtype), y, axis=0)))
            c.out(make("concat", make("neg", c.port(3, 4)), make("exp", c.port(3, 5)), axis=1))
    return c.case()


def inner(x: Node) -> Node:
    """A bool of shape [columns] that depends on every element, for axes that no port can have."""
    kind = x.tensor.dtype
    return make("max", make("ne", x, make("const", value=False if kind is DType.BOOL else 1 if kind.is_int else 1.0,
                                          dtype=kind)), axes=(0,))  # fmt: skip


def reductions(name: str) -> Case:
    c = Builder(name)
    for dtype in (*FLOATS, *INTS):
        c.out(make(name, c.port(3, 37, dtype=dtype), axes=(1,)))
    x = c.port(3, 4, 5)
    for count in range(4):
        c.out(*(make(name, x, axes=a) for a in itertools.combinations(range(3), count)))
    y = c.port(T, 6, 8)
    c.out(*(make(name, y, axes=a) for a in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))))
    c.out(make(name, c.port(17), axes=(0,)), make(name, c.port(T), axes=(0,)), make(name, c.port(1), axes=(0,)))
    e = make("exp", y)
    c.out(make("div", e, make("reshape", make("sum", e, axes=(2,)), shape=(T, 6, 1))))
    if name in ("max", "min"):
        c.out(make(name, c.port(3, 5, dtype="bool"), axes=(1,)))
        values = [[1.0, np.nan, 2.0], [np.inf, 1.0, -np.inf], [-np.inf, -np.inf, -np.inf], [0.0, -1.0, np.nan]]
        c.out(make(name, c.port(4, 3, values=values), axes=(1,)))
    return c.case()


def argmax() -> Case:
    c = Builder("argmax")
    for dtype in (*FLOATS, *INTS):
        x = c.port(3, 4, 9, dtype=dtype)
        c.out(*(make("argmax", x, axis=a) for a in (range(3) if dtype in ("f32", "i64") else (2,))))
    c.out(make("argmax", c.port(9), axis=0), make("argmax", c.port(T), axis=0))
    y = c.port(T, 7)
    c.out(make("argmax", y, axis=0), make("argmax", y, axis=1))
    c.out(make("argmax", make("mul", y, y), axis=1))
    c.out(make("argmax", c.port(3, 4, values=[[1, np.nan, 2, np.nan], [np.inf] * 4, [-np.inf] * 4]), axis=1))
    return c.case()


def cumsum() -> Case:
    c = Builder("cumsum")
    for dtype in (*FLOATS, *INTS):
        x = c.port(3, 4, 9, dtype=dtype)
        c.out(*(make("cumsum", x, axis=a) for a in (range(3) if dtype in ("f32", "i64") else (1,))))
    c.out(make("cumsum", c.port(9), axis=0), make("cumsum", c.port(T), axis=0), make("cumsum", c.port(1), axis=0))
    y = c.port(T, 7)
    c.out(make("cumsum", y, axis=0), make("cumsum", y, axis=1))
    c.out(make("cumsum", make("cumsum", make("neg", y), axis=0), axis=0))
    c.out(make("cumsum", make("cumsum", y, axis=1), axis=1), make("cumsum", c.port(1, 6), axis=0))
    c.out(make("exp", make("cumsum", make("transpose", y, perm=(1, 0)), axis=1)))
    return c.case()


def selection(name: str) -> Case:
    c = Builder(name)

    def select(x: Node, part: str, descending: bool | None = None) -> Node:
        attrs: dict[str, Any] = {"axis": x.tensor.rank - 1, "part": part}
        if descending is not None:
            attrs["descending"] = descending
        if name == "topk":
            length = x.shape[-1]
            attrs["k"] = min(3, length) if isinstance(length, int) else 1
        return make(name, x, **attrs)

    for part in ("values", "indices"):
        for dtype in (*EXACT[:6], "i8"):
            c.out(select(c.port(3, 9, dtype=dtype), part))
        c.out(select(c.port(2, 3, 8), part), select(c.port(9), part), select(c.port(T, 6), part))
        c.out(select(c.port(T), part), select(c.port(2, 1), part), select(c.port(3, T), part))
        c.out(select(c.port(4, 6, dtype="f16"), part), select(make("neg", c.port(T, 6)), part))
        c.out(select(make("broadcast", c.port(4), shape=(3, 4)), part), select(make("iota", size=7), part))
        c.out(select(make("transpose", c.port(5, T), perm=(1, 0)), part))
        c.out(select(make("reshape", c.port(T, 2, 3), shape=(T, 6)), part))
        c.out(select(c.port(2, 6, dtype="bf16"), part))
        if name == "sort":
            c.out(select(c.port(3, 9), part, False), select(c.port(3, 9, dtype="i64"), part, True))
            c.out(select(make("exp", c.port(3, T)), part, False))
    return c.case()


def take() -> Case:
    c = Builder("take")
    x = c.port(4, 5, 6)
    for axis in range(3):
        index = c.port(7, dtype="i64", low=-2, high=9)
        c.out(make("take", x, index, axis=axis))
        c.out(make("take", x, c.port(2, 3, dtype="i32", low=0, high=4), axis=axis))
        c.out(make("take", x, c.port(dtype="i64", low=0, high=4), axis=axis))
    table = c.port(10, 3)
    ids = c.port(T, dtype="i32", low=0, high=10)
    c.out(make("take", table, ids, axis=0), make("exp", make("take", table, ids, axis=0)))
    c.out(make("take", c.port(9, dtype="i64"), c.port(T, 2, dtype="i64", low=0, high=9), axis=0))
    c.out(make("take", c.port(T, 4, dtype="bool"), c.port(3, dtype="i64", low=0, high=12), axis=0))
    own = make("abs", c.port(6, dtype="i64", low=0, high=6))
    c.out(make("take", own, own, axis=0))
    big = c.weight(2048, 16)
    c.out(make("take", big, c.port(T, dtype="i64", low=0, high=2048), axis=0))
    c.out(make("take", big, c.port(T, 2, dtype="i64", low=-5, high=2048), axis=0))
    c.out(make("take", big, c.port(dtype="i64", low=0, high=2048), axis=0))
    return c.case()


def gather() -> Case:
    c = Builder("gather")
    for dtype in ("f32", "i64", "bool"):
        x = c.port(4, 5, 6, dtype=dtype)
        for axis in range(3):
            shape = [7 if a == axis else d for a, d in enumerate((4, 5, 6))]
            c.out(make("gather", x, c.port(*shape, dtype="i64", low=-2, high=9), axis=axis))
    y = c.port(T, 8)
    c.out(make("gather", y, c.port(T, 3, dtype="i32", low=0, high=8), axis=1))
    c.out(make("gather", c.port(9), c.port(T, dtype="i64", low=0, high=9), axis=0))
    top = make("topk", y, axis=1, k=2, part="indices")
    c.out(make("gather", make("exp", y), top, axis=1))
    return c.case()


def scatter() -> Case:
    c = Builder("scatter")
    for mode in ("set", "add"):
        for dtype in ("f32", "i64"):
            for axis in range(2):
                shape = (3, 5) if axis else (5, 3)
                index = c.port(*shape, dtype="i64", low=0, high=6 if axis else 4)
                base, updates = c.port(4, 6, dtype=dtype), c.port(*shape, dtype=dtype)
                c.out(make("scatter", base, index, updates, axis=axis, mode=mode))
        base, updates = c.port(T, 6), c.port(T, 2)
        c.out(make("scatter", base, c.port(T, 2, dtype="i64", low=0, high=6), updates, axis=1, mode=mode))
        c.out(make("scatter", c.port(6), c.port(T, dtype="i32", low=0, high=6), c.port(T), axis=0, mode=mode))
        c.out(make("scatter", c.port(T, 2), c.port(3, 2, dtype="i32", low=0, high=11), c.port(3, 2), axis=0, mode=mode))
        zeros = make("broadcast", make("const", value=0.0, dtype="f32"), shape=(T, 6))
        top = make("topk", base, axis=1, k=2, part="indices")
        c.out(make("scatter", zeros, top, make("topk", base, axis=1, k=2, part="values"), axis=1, mode=mode))
        c.out(make("scatter", c.port(1, 1), c.port(1, 1, dtype="i64", low=0, high=1), c.port(1, 1), axis=1, mode=mode))
    return c.case()


def contract() -> Case:
    c = Builder("contract")
    sizes: dict[str, Dim] = {"t": T, "n": 5, "k": 33, "b": 2, "h": 3, "m": 4}
    specs = [
        "tk,nk->tn", "tk,kn->tn", "nk,tk->tn", "k,nk->n", "k,k->", "n,m->nm", "nk,nk->n", "bnk,bmk->bnm", "tk,tk->t",
        "thk,hnk->thn", "nk,mk->kmn", "tn,tm->nm", "bhn,bhn->", "tk,nk->nt", ",n->n", ",->", "nt,tm->nm",
    ]  # fmt: skip
    for spec in specs:
        left, _, _ = spec.partition("->")
        a, _, d = left.partition(",")
        c.out(make("contract", c.port(*(sizes[x] for x in a)), c.port(*(sizes[x] for x in d)), spec=spec))
    for dtype in ("f64", "i64", "i32", "f16"):
        c.out(make("contract", c.port(3, 8, dtype=dtype), c.port(5, 8, dtype=dtype), spec="tk,nk->tn"))
    return c.case()


def matmul(weights_dtype: str, group: int) -> Case:
    """Contractions with weights, with the epilogues and sisters that ride on them."""
    c = Builder(f"contract_weights_{weights_dtype}_{group}")
    x, k = c.port(T, 160), 160
    gate, up, down = c.weight(48, k), c.weight(48, k), c.weight(k, 48)
    g = make("contract", x, gate, spec="tk,nk->tn")
    u = make("contract", x, up, spec="tk,nk->tn")
    h = make("mul", make("mul", g, make("sigmoid", g)), u)
    c.out(make("add", x, make("contract", h, down, spec="tk,nk->tn")))
    seen = make("tanh", x)  # a port shows what a matmul takes
    c.out(seen, make("contract", seen, c.weight(9, k), spec="tk,nk->tn"))
    c.out(make("contract", x, c.weight(k, 7), spec="tk,kn->tn"))
    c.out(make("add", make("contract", c.port(T, 2, k), c.weight(33, k), spec="tsk,nk->tsn"), c.port(33)))
    c.out(make("contract", c.port(k), c.weight(6, k), spec="k,nk->n"))
    c.out(make("contract", c.port(T, 12), c.weight(6, 12), spec="tk,nk->tn"))
    c.out(make("contract", c.port(T, k), c.weight(1, k), spec="tk,nk->tn"))
    experts = c.weight(4, 24, k)
    ids = c.port(T, 2, dtype="i32", low=0, high=4)
    xs = make("broadcast", make("reshape", x, shape=(T, 1, k)), shape=(T, 2, k))
    c.out(make("contract", xs, make("take", experts, ids, axis=0), spec="tek,tenk->ten"))
    wide = make("take", c.weight(4, 24, k), c.port(T, dtype="i64", low=-1, high=6), axis=0)
    c.out(make("contract", x, wide, spec="tk,tnk->tn"))
    case = c.case()
    case.weights_dtype, case.group = weights_dtype, group
    return case


MAKERS: dict[str, Callable[[], list[Case]]] = {
    **{n: lambda n=n: [unary(n, FLOATS)] for n in FLOAT_UNARY},
    **{n: lambda n=n: [unary(n, (*FLOATS, *INTS))] for n in ("neg", "abs")},
    "not": lambda: [unary("not", ("bool",))],
    **{n: lambda n=n: [binary(n, (*FLOATS, *INTS))] for n in ("add", "sub", "mul", "floordiv", "mod", "pow")},
    "div": lambda: [binary("div", FLOATS)],
    **{n: lambda n=n: [binary(n, (*FLOATS, *INTS, "bool"))] for n in ("maximum", "minimum", "eq", "ne", "lt", "le")},
    **{n: lambda n=n: [binary(n, (*INTS, "bool"))] for n in ("and", "or", "xor")},
    "where": lambda: [where()],
    "cast": lambda: [cast(d) for d in (*FLOATS, *INTS, "bool")],
    "random_bits": lambda: [random_bits()],
    "const": lambda: [leaves()],
    "port": lambda: [leaves()],
    "iota": lambda: [iota()],
    "weight": lambda: [weight()],
    **{n: lambda n=n: [views(n)] for n in ("reshape", "transpose", "broadcast", "slice", "pad", "concat")},
    **{n: lambda n=n: [reductions(n)] for n in ("sum", "max", "min")},
    "argmax": lambda: [argmax()],
    "cumsum": lambda: [cumsum()],
    "topk": lambda: [selection("topk")],
    "sort": lambda: [selection("sort")],
    "take": lambda: [take()],
    "gather": lambda: [gather()],
    "scatter": lambda: [scatter()],
    "contract": lambda: [contract(), *(matmul(d, g) for d, g in (("f32", 32), ("bf16", 32), ("int8", 32), ("int4", 32),
                                                                  ("int8", 128), ("int4", 64)))],
}  # fmt: skip


def all_cases() -> list[Case]:
    cases = {c.name: c for maker in MAKERS.values() for c in maker()}
    return list(cases.values())
