"""Seeded random programs over the whole op table.

Values come in three kinds: `exact` (integers, or floats that hold small integers: every device computes them without
rounding, so that comparisons, floors, orders and indices of them are the same everywhere), `smooth` floats, and bools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from device import Arrays, Case, port, program_of

from echoc.compiler.ir import DType, Node, make, symbol
from echoc.compiler.ir.types import Dim, dim_product, dim_value

T = symbol("T")
SYMBOLS = {"T": (1, 24)}
SMOOTH = ("tanh", "sigmoid", "sin", "cos", "erf", "neg", "abs")
MAX_ELEMENTS = 4096


class Generator:
    """Grows a graph node by node; `values` holds every node made so far with its kind."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.tokens = int(self.random.integers(1, 20))
        self.values: list[tuple[Node, str]] = []
        self.inputs: Arrays = {}
        self.weights: Arrays = {}

    def choose(self, items: Sequence[object]) -> object:
        return items[int(self.random.integers(len(items)))]

    def integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high))

    def keep(self, node: Node, kind: str) -> None:
        sizes = [dim_value(d, {"T": 24}) for d in node.shape]
        if np.prod(sizes, dtype=np.int64) <= MAX_ELEMENTS and len(sizes) <= 4:
            self.values.append((node, kind))

    def pick(self, kind: str, test: Callable[[Node], bool] = lambda n: True) -> Node | None:
        """A value of a kind, the recent ones more often."""
        found = [n for n, k in self.values if k == kind and test(n)]
        if not found:
            return None
        return found[-1 - min(int(self.random.exponential(3.0)), len(found) - 1)]

    def source(self) -> None:
        """A port, a weight, a count or a constant."""
        shape = self.shape()
        sizes = [dim_value(d, {"T": self.tokens}) for d in shape]
        which = self.integer(0, 6)
        name = f"p{len(self.inputs)}"
        if which <= 1:
            self.inputs[name] = self.random.standard_normal(sizes).astype(np.float32)
            self.keep(port(name, *shape), "smooth")
        elif which == 2:
            dtype = ("i64", "i32", "f32", "i16")[self.integer(0, 4)]
            self.inputs[name] = self.random.integers(-5, 6, sizes).astype(DType(dtype).numpy)
            self.keep(port(name, *shape, dtype=dtype), "exact")
        elif which == 3:
            self.inputs[name] = self.random.random(sizes) < 0.5
            self.keep(port(name, *shape, dtype="bool"), "bool")
        elif which == 4:
            self.keep(make("iota", size=shape[0] if shape else 5), "exact")
        else:
            fixed = tuple(d for d in shape if isinstance(d, int))
            self.keep(self.weight(*fixed), "smooth")

    def weight(self, *shape: int) -> Node:
        name = f"w{len(self.weights)}"
        scale = 1 / np.sqrt(max(shape[-1:], default=1))
        self.weights[name] = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return make("weight", name=name, shape=shape, dtype="f32")

    def shape(self) -> tuple[Dim, ...]:
        rank = self.integer(0, 4)
        dims: list[Dim] = [self.integer(1, 7) for _ in range(rank)]
        if rank and self.random.random() < 0.6:
            dims[self.integer(0, rank) if self.random.random() < 0.2 else 0] = T
        return tuple(dims)

    def step(self) -> None:
        """One more node, of an op chosen at random."""
        name = self.choose(sorted(n for n in dir(self) if n.startswith("grow_")))
        getattr(self, str(name))()

    def any_value(self, test: Callable[[Node], bool] = lambda n: True) -> tuple[Node, str] | None:
        kind = ("smooth", "smooth", "exact", "bool")[self.integer(0, 4)]
        node = self.pick(kind, test)
        return None if node is None else (node, kind)

    def grow_source(self) -> None:
        self.source()

    def grow_unary(self) -> None:
        x = self.pick("smooth")
        if x is not None:
            self.keep(make(str(self.choose(SMOOTH)), x), "smooth")

    def grow_exp(self) -> None:
        x = self.pick("smooth")
        if x is not None:
            bounded = make("tanh", x)
            name = str(self.choose(("exp", "expm1", "log1p", "sqrt", "rsqrt", "log")))
            if name in ("log1p", "sqrt", "rsqrt", "log"):
                bounded = make("add", bounded, make("const", value=1.5, dtype="f32"))
            self.keep(make(name, bounded), "smooth")

    def grow_binary(self) -> None:
        x = self.pick("smooth")
        y = self.partner(x, "smooth")
        if x is not None and y is not None:
            name = str(self.choose(("add", "sub", "mul", "maximum", "minimum")))
            # kept small: errors stay comparable
            self.keep(make("mul", make(name, x, y), make("const", value=0.5, dtype="f32")), "smooth")

    def grow_div(self) -> None:
        x = self.pick("smooth")
        y = self.partner(x, "smooth")
        if x is not None and y is not None:
            safe = make("add", make("abs", y), make("const", value=1.0, dtype="f32"))
            self.keep(make("div", x, safe), "smooth")

    def grow_integers(self) -> None:
        x = self.pick("exact", lambda n: n.tensor.dtype.is_int)
        y = self.partner(x, "exact")
        if x is not None and y is not None:
            name = str(self.choose(("add", "sub", "mul", "maximum", "minimum", "floordiv", "mod", "and", "or", "xor")))
            limit = make("const", value=97, dtype=x.tensor.dtype)
            self.keep(make("mod", make(name, x, y), limit), "exact")

    def grow_compare(self) -> None:
        x = self.pick("exact")
        y = self.partner(x, "exact")
        if x is not None and y is not None:
            self.keep(make(str(self.choose(("eq", "ne", "lt", "le"))), x, y), "bool")

    def grow_logic(self) -> None:
        x = self.pick("bool")
        y = self.partner(x, "bool")
        if x is not None and y is not None:
            self.keep(make(str(self.choose(("and", "or", "xor"))), make("not", x), y), "bool")

    def grow_where(self) -> None:
        found = self.any_value()
        if found is None:
            return
        x, kind = found
        y, c = self.partner(x, kind), self.partner(x, "bool", DType.BOOL)
        if y is not None and c is not None and self.compatible(c.shape, y.shape):
            self.keep(make("where", c, x, y), kind)

    def partner(self, x: Node | None, kind: str, dtype: DType | None = None) -> Node | None:
        """A value that broadcasts with x."""
        if x is None:
            return None
        wanted = dtype or x.tensor.dtype
        return self.pick(kind, lambda n: n.tensor.dtype == wanted and self.compatible(n.shape, x.shape))

    @staticmethod
    def compatible(a: tuple[Dim, ...], c: tuple[Dim, ...]) -> bool:
        return all(p == q or p == 1 or q == 1 for p, q in zip(reversed(a), reversed(c), strict=False))

    def grow_cast(self) -> None:
        x = self.pick("exact")
        if x is not None:
            dtype = str(self.choose(("f32", "i64", "i32", "f64")))
            node = make("cast", x, dtype=dtype)
            self.keep(node, "exact")
            if dtype == "f32" and self.random.random() < 0.5:
                self.keep(make("mul", node, make("const", value=0.25, dtype="f32")), "smooth")

    def grow_round(self) -> None:
        x = self.pick("exact", lambda n: n.tensor.dtype is DType.F32)
        if x is not None:
            half = make("mul", x, make("const", value=0.5, dtype="f32"))
            self.keep(make(str(self.choose(("floor", "ceil", "round", "trunc"))), half), "exact")

    def grow_flag(self) -> None:
        x = self.pick("bool")
        if x is not None:
            self.keep(make("cast", x, dtype=str(self.choose(("f32", "i64")))), "exact")

    def grow_reshape(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0)
        if found is None:
            return
        x, kind = found
        shape = list(x.shape)
        at = self.integer(0, len(shape))
        size = shape[at]
        if self.random.random() < 0.4 and len(shape) > 1:
            at = min(at, len(shape) - 2)
            shape[at : at + 2] = [dim_product((shape[at], shape[at + 1]))]
        elif isinstance(size, int) and size % 2 == 0:
            shape[at : at + 1] = [2, size // 2]
        else:
            shape.insert(at, 1)
        self.keep(make("reshape", x, shape=tuple(shape)), kind)

    def grow_transpose(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 1)
        if found is not None:
            perm = tuple(int(p) for p in self.random.permutation(found[0].tensor.rank))
            self.keep(make("transpose", found[0], perm=perm), found[1])

    def grow_broadcast(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank < 3)
        if found is not None:
            x, kind = found
            shape = tuple(self.integer(2, 5) if d == 1 else d for d in x.shape)
            lead: tuple[Dim, ...] = (T,) if self.random.random() < 0.3 and "T" not in x.tensor.symbols else ()
            self.keep(make("broadcast", x, shape=(*lead, *shape)), kind)

    def grow_slice(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0)
        if found is None:
            return
        x, kind = found
        starts: list[Dim] = []
        stops: list[Dim] = []
        steps = []
        for dim in x.shape:
            low = self.integer(0, dim) if isinstance(dim, int) else 0
            starts.append(low)
            stops.append(self.integer(low, dim) + 1 if isinstance(dim, int) else dim)
            steps.append(self.integer(1, 3) if isinstance(dim, int) else 1)
        self.keep(make("slice", x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps)), kind)

    def grow_pad(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0)
        if found is not None:
            x, kind = found
            low = tuple(self.integer(0, 3) for _ in x.shape)
            high = tuple(self.integer(0, 2) for _ in x.shape)
            value = {"bool": True, "exact": 2, "smooth": -0.5}[kind]
            value = float(value) if x.tensor.dtype.is_float else value
            self.keep(make("pad", x, low=low, high=high, value=value), kind)

    def grow_concat(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0)
        if found is None:
            return
        x, kind = found
        axis = self.integer(0, x.tensor.rank)

        def fits(n: Node) -> bool:
            same = n.tensor.rank == x.tensor.rank and n.tensor.dtype == x.tensor.dtype
            return same and all(p == q for i, (p, q) in enumerate(zip(n.shape, x.shape, strict=True)) if i != axis)

        parts = [x, self.pick(kind, fits) or x, self.pick(kind, fits) or x][: self.integer(2, 4)]
        self.keep(make("concat", *parts, axis=axis), kind)

    def grow_reduce(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0)
        if found is None:
            return
        x, kind = found
        axes = tuple(a for a in range(x.tensor.rank) if self.random.random() < 0.5) or (x.tensor.rank - 1,)
        name = str(self.choose(("max", "min", "sum")))
        out = make(name, x, axes=axes)
        if name == "sum" and kind == "smooth":
            out = make("mul", out, make("const", value=0.125, dtype="f32"))
        if name == "sum" and kind == "exact":
            out = make("mod", out, make("const", value=97.0 if x.tensor.dtype.is_float else 97, dtype=x.tensor.dtype))
        self.keep(out, kind)

    def grow_softmax(self) -> None:
        x = self.pick("smooth", lambda n: n.tensor.rank > 0)
        if x is not None:
            axis = self.integer(0, x.tensor.rank)
            kept = tuple(1 if a == axis else d for a, d in enumerate(x.shape))
            top = make("reshape", make("max", x, axes=(axis,)), shape=kept)
            e = make("exp", make("sub", x, top))
            self.keep(make("div", e, make("reshape", make("sum", e, axes=(axis,)), shape=kept)), "smooth")

    def grow_norm(self) -> None:
        x = self.pick("smooth", lambda n: n.tensor.rank > 1)
        if x is not None:
            square = make("sum", make("mul", x, x), axes=(x.tensor.rank - 1,))
            total = make(
                "add", make("reshape", square, shape=(*x.shape[:-1], 1)), make("const", value=1.0, dtype="f32")
            )
            self.keep(make("mul", x, make("rsqrt", total)), "smooth")

    def grow_cumsum(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0 and n.tensor.dtype is not DType.BOOL)
        if found is not None:
            x, kind = found
            out = make("cumsum", x, axis=self.integer(0, x.tensor.rank))
            scale = 0.125 if kind == "smooth" else None
            if scale is not None:
                out = make("mul", out, make("const", value=scale, dtype="f32"))
            self.keep(out, kind)

    def grow_select(self) -> None:
        x = self.pick("exact", lambda n: n.tensor.rank > 0)
        if x is None:
            return
        axis, length = x.tensor.rank - 1, x.shape[-1]
        part = str(self.choose(("values", "indices")))
        name = str(self.choose(("topk", "sort", "argmax")))
        if name == "argmax":
            self.keep(make("argmax", x, axis=self.integer(0, x.tensor.rank)), "exact")
        elif name == "sort":
            self.keep(make("sort", x, axis=axis, part=part, descending=bool(self.integer(0, 2))), "exact")
        else:
            k = self.integer(1, length + 1) if isinstance(length, int) else 1
            self.keep(make("topk", x, axis=axis, k=k, part=part), "exact")

    def grow_take(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0)
        index = self.pick("exact", lambda n: n.tensor.dtype in ("i64", "i32") and n.tensor.rank < 3)
        if found is not None and index is not None:
            self.keep(make("take", found[0], index, axis=self.integer(0, found[0].tensor.rank)), found[1])

    def grow_gather(self) -> None:
        found = self.any_value(lambda n: n.tensor.rank > 0)
        if found is None:
            return
        x, kind = found
        axis = self.integer(0, x.tensor.rank)

        def fits(n: Node) -> bool:
            same = n.tensor.rank == x.tensor.rank and n.tensor.dtype in ("i64", "i32")
            return same and all(p == q for i, (p, q) in enumerate(zip(n.shape, x.shape, strict=True)) if i != axis)

        index = self.pick("exact", fits)
        if index is not None:
            self.keep(make("gather", x, index, axis=axis), kind)
            updates = self.pick(kind, lambda n: n.shape == index.shape and n.tensor.dtype == x.tensor.dtype)
            if updates is not None and kind != "bool":
                scale = make("scatter", x, index, updates, axis=axis, mode="set")
                self.keep(scale, kind)

    def grow_random(self) -> None:
        x = self.pick("exact", lambda n: n.tensor.dtype == "i64")
        y = self.partner(x, "exact")
        if x is not None and y is not None:
            key = make("const", value=self.integer(-(2**63), 2**63), dtype="i64")
            bits = make("random_bits", key, x, *[y][: self.integer(0, 2)])
            self.keep(make("mod", bits, make("const", value=97, dtype="i64")), "exact")

    def grow_contract(self) -> None:
        x = self.pick("smooth", lambda n: n.tensor.rank in (2, 3))
        y = self.pick("smooth", lambda n: n.tensor.rank == 2)
        if x is None or y is None or x.tensor.rank != 2:
            return
        for spec in ("tk,nk->tn", "tk,kn->tn", "kt,kn->nt", "kt,kn->tn"):
            a, c = spec.partition("->")[0].split(",")
            if x.shape[a.index("k")] == y.shape[c.index("k")] and "T" not in str(y.shape[c.index("n")]):
                out = make("contract", x, y, spec=spec)
                self.keep(make("mul", out, make("const", value=0.25, dtype="f32")), "smooth")
                return

    def grow_matmul(self) -> None:
        """A contraction with a weight, sometimes two that meet again: gated layers."""
        x = self.pick("smooth", lambda n: n.tensor.rank in (1, 2, 3) and isinstance(n.shape[-1], int))
        if x is None:
            return
        k, n = int(str(x.shape[-1])), int(str(self.choose((1, 3, 16, 33))))
        letters = "abc"[: x.tensor.rank - 1]
        flip = self.random.random() < 0.3
        spec = f"{letters}k,{'kn' if flip else 'nk'}->{letters}n"
        out = make("contract", x, self.weight(*((k, n) if flip else (n, k))), spec=spec)
        if self.random.random() < 0.4:
            other = make("contract", x, self.weight(*((k, n) if flip else (n, k))), spec=spec)
            out = make("mul", make("sigmoid", out), other)
        if self.random.random() < 0.4:
            out = make("add", out, self.weight(n))
        self.keep(out, "smooth")

    def grow_wide(self) -> None:
        """A matmul whose rows are long enough for quantised weights."""
        x = self.pick("smooth", lambda n: n.tensor.rank == 2 and isinstance(n.shape[-1], int))
        if x is not None:
            k = int(str(x.shape[-1]))
            wide = make("contract", x, self.weight(64, k), spec="tk,nk->tn")
            self.keep(make("contract", make("tanh", wide), self.weight(5, 64), spec="tk,nk->tn"), "smooth")


def random_case(seed: int, size: int = 14) -> Case:
    """A program of about `size` nodes beyond its leaves, with its arrays; the same for the same seed."""
    g = Generator(seed)
    for _ in range(4):
        g.source()
    g.inputs["anchor"] = g.random.standard_normal((g.tokens, 4)).astype(np.float32)
    g.keep(port("anchor", T, 4), "smooth")
    for _ in range(size):
        g.step()
    used = {i for n, _ in g.values for i in n.inputs}
    ends = [n for n, _ in g.values if n not in used and n.inputs] or [g.values[-1][0]]
    ends += [n for n, _ in g.values if n in used and n.inputs and g.random.random() < 0.1]
    ends.append(make("neg", port("anchor", T, 4)))
    outputs: dict[str, Node] = {}
    for node in ends:
        plain = all(isinstance(d, int) or d == T for d in node.shape)
        if not plain:  # no port has such a shape: let every element count
            if node.tensor.dtype is DType.BOOL:
                node = make("cast", node, dtype="i64")
            node = make("max", node, axes=tuple(range(node.tensor.rank)))
        outputs[f"y{len(outputs)}"] = node
    program = program_of(outputs, SYMBOLS)
    names = {p.name for p in program.skin.ports}
    mentioned = {n["name"] for n in program.skin.rules[0].order if n.op == "weight"}
    case = Case(
        f"seed{seed}", program, {k: v for k, v in g.inputs.items() if k in names},
        {k: v for k, v in g.weights.items() if k in mentioned},
    )  # fmt: skip
    case.weights_dtype = ("f32", "f32", "bf16", "int8", "int4")[seed % 5]
    return case
