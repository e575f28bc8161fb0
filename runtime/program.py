"""A loaded program of any kind: bind arrays to its ports, pick a variant, run the step."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from echoc.errors import ArtifactError, DeviceError, RequestError
from echoc.runtime.artifact import Artifact
from echoc.runtime.devices import Array, PageCount, open_device
from echoc.runtime.manifest import DTYPES, GPUS, PortSpec, VariantSpec
from echoc.runtime.pages import PagePool


@dataclass(frozen=True, slots=True)
class _Sized:
    """What steps of a rule have in common while their sizes stay: the variant, and views of the output ports."""

    rule: str
    dims: list[int]
    variant: int
    outputs: dict[str, Array]


class Program:
    """An artifact on its device, ready to step. `pool` owns the pages of its state.

    Not safe for use from several threads at once.
    """

    def __init__(
        self,
        artifact: Artifact | str | os.PathLike[str],
        *,
        num_pages: int | None = None,
        state_bytes: int | None = None,
        most_pages: int | None = None,
        num_threads: int | None = None,
        deterministic: bool = False,
        prefix_cache: bool = True,
        device_index: int | None = None,
    ) -> None:
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
        self.manifest = self.artifact.manifest
        self.deterministic = deterministic
        self._variants = _usable_variants(self.artifact, deterministic)
        self.device = open_device(
            self.artifact,
            num_pages=_pool_size(self.artifact, num_pages, state_bytes, most_pages),
            num_threads=num_threads,
            device_index=device_index,
        )
        self._symbols = {symbol.name: i for i, symbol in enumerate(self.manifest.symbols)}
        self._sizes = [  # an axis of an input port, and the symbol that is its size
            (port.name, axis, self._symbols[size])
            for port in self.manifest.ports
            if port.direction == "in"
            for axis, size in enumerate(port.shape)
            if isinstance(size, str)
        ]
        self.pool = PagePool(
            self.device.num_pages,
            max(self.manifest.page_size, 1),
            prefix_cache=prefix_cache,
            widest_table=self.bound("block_table", axis=1) if self.manifest.device in GPUS else None,
        )
        self._port_names = [port.name for port in self.manifest.ports]
        self._last: _Sized | None = None
        self._buffers: dict[str, Array] = {}
        self._holder: ValueInstance | None = None  # whose values the device has; None: the program's own
        self._own = np.empty(0, np.uint8)

    def create(self, **inputs: npt.ArrayLike) -> "Instance | ValueInstance":
        """A new instance with empty state: an `Instance`, or a `ValueInstance` where state is values without pages.

        `inputs` are for the latter: what the ports of these names get in each of its steps, as `seed` and `run`.
        """
        kinds = {state.kind for state in self.manifest.states}
        if kinds == {"value"}:
            return ValueInstance(self, inputs)
        if inputs:
            raise RequestError(f"an instance of {self.artifact.path} is stepped by tokens; it takes no {min(inputs)!r}")
        return Instance(self, self.pool.create(np.empty(0, np.int32), use_cache=False)[0])

    def step(
        self, inputs: Mapping[str, npt.ArrayLike], *, rule: str = "step", copy: bool = True, check: bool = True
    ) -> dict[str, Array]:
        """Runs one step on the program's own state, where it has some, and returns the output ports by name.

        `inputs` holds one array per input port; symbols take their values from the arrays' shapes. With copy=False
        the outputs are views that the next step overwrites. Raises RequestError for arrays that do not fit the ports,
        and for indices that point nowhere; check=False says that `inputs` were made here and holds at least the ports'.
        """
        self._hold(None)
        return self._step(inputs, rule, copy, check)

    def _step(self, inputs: Mapping[str, npt.ArrayLike], rule: str, copy: bool, check: bool) -> dict[str, Array]:
        variant, dims, ordered, outputs = self.bind(inputs, rule, check)
        self.device.step(variant, dims, ordered)
        return {name: array.copy() for name, array in outputs.items()} if copy else outputs

    def bind(
        self, inputs: Mapping[str, npt.ArrayLike], rule: str, check: bool
    ) -> tuple[int, list[int], list[Array], dict[str, Array]]:
        """What a device's step takes: the variant, the symbols' values, an array per port; and the outputs by name."""
        dims = [-1] * len(self._symbols)
        arrays: Mapping[str, Array]
        if check:
            arrays = self._bind_inputs(inputs, dims)
        else:
            arrays = cast(Mapping[str, Array], inputs)
            for name, axis, symbol_index in self._sizes:
                dims[symbol_index] = arrays[name].shape[axis]
        if self._last is None or self._last.rule != rule or self._last.dims != dims:
            self._last = self._sized(rule, dims)
        if check:
            self._check_indices(arrays)
        outputs = self._last.outputs
        ordered = [outputs[name] if name in outputs else arrays[name] for name in self._port_names]
        return self._last.variant, dims, ordered, outputs

    def _sized(self, rule: str, dims: list[int]) -> "_Sized":
        for symbol, value in zip(self.manifest.symbols, dims, strict=True):
            if not symbol.low <= value <= symbol.high:
                raise RequestError(f"size {symbol.name} is {value}, the program takes {symbol.low}..{symbol.high}")
        outputs = {port.name: self._output(port, dims) for port in self.manifest.ports if port.direction == "out"}
        return _Sized(rule, dims, self._choose(rule, dims), outputs)

    def _hold(self, instance: "ValueInstance | None") -> None:
        """Puts the values of an instance (None: the program's own) where steps read and write them."""
        if instance is self._holder:
            return
        held = self.device.save()
        if self._holder is None:
            self._own = held
        else:
            self._holder.values = held
        self.device.restore(self._own if instance is None else instance.values)
        self._holder = instance

    def max_tokens(self, rule: str = "step") -> int:
        """The most tokens one step takes."""
        return self._limit(rule, "T", "max_tokens")

    def max_rows(self, rule: str = "step") -> int:
        """The most rows of output one step gives."""
        return self._limit(rule, "R", "max_rows")

    def bound(self, port: str, axis: int) -> int:
        """The largest size of a port's axis; no limit for a port that the program does not have."""
        for spec in self.manifest.ports:
            if spec.name == port:
                size = spec.shape[axis]
                return size if isinstance(size, int) else self.manifest.symbols[self._symbols[size]].high
        return (1 << 31) - 1

    def advance(
        self, instances: "Sequence[Instance]", tokens: Sequence[npt.ArrayLike], rows: Literal["last", "all"] = "last"
    ) -> Array:
        """Appends tokens to each instance's state in one step.

        Returns the first output port: one row per instance ("last") or per token ("all"), in order. Raises
        RequestError, with every instance as it was, when the pages do not suffice.
        """
        chunks = [np.ascontiguousarray(chunk, dtype=np.int32).reshape(-1) for chunk in tokens]
        if len(chunks) != len(instances) or any(chunk.size == 0 for chunk in chunks):
            raise RequestError("a step wants one or more tokens for each of its instances")
        handles = [instance.handle for instance in instances]
        starts = [instance.length for instance in instances]
        needed = sum(self.pool.pages_for(h, c.size) for h, c in zip(handles, chunks, strict=True))
        if needed > self.pool.num_available:
            raise RequestError(f"the step needs {needed} pages, {self.pool.num_available} are free")
        for handle, chunk in zip(handles, chunks, strict=True):
            copies = self.pool.append(handle, chunk)
            if copies:
                self.device.copy_pages(copies)
        batch = self.pool.batch(handles, starts, chunks, all_rows=rows == "all")
        result = self.run_batch(batch)
        return result.copy()

    def run_batch(self, batch: Mapping[str, Array]) -> Array:
        """A step with the ports of a paged program; returns a view of its first output port."""
        names = {port.name for port in self.manifest.ports}
        outputs = self.step({n: array for n, array in batch.items() if n in names}, copy=False)
        return next(iter(outputs.values()))

    def _bind_inputs(self, inputs: Mapping[str, npt.ArrayLike], dims: list[int]) -> dict[str, Array]:
        arrays = {p.name: self._bind_input(p, inputs, dims) for p in self.manifest.ports if p.direction == "in"}
        for name in inputs:
            if name not in arrays:
                raise RequestError(f"the program has no input port {name!r}; it has {', '.join(arrays)}")
        return arrays

    def _bind_input(self, port: PortSpec, inputs: Mapping[str, npt.ArrayLike], dims: list[int]) -> Array:
        if port.name not in inputs:
            raise RequestError(f"the step lacks its input {port.name} ({port.dtype}, shape {list(port.shape)})")
        given = inputs[port.name]
        dtype = np.dtype(DTYPES[port.dtype])
        if isinstance(given, np.ndarray) and given.dtype == dtype and given.flags.c_contiguous:
            array = given
        else:
            array = _converted(port, given, dtype)
        fits = array.ndim == len(port.shape)
        for size, wanted in zip(array.shape, port.shape, strict=False):
            if isinstance(wanted, int):
                fits = fits and size == wanted
                continue
            index = self._symbols[wanted]
            fits = fits and dims[index] in (-1, size)
            dims[index] = size
        if not fits:
            raise RequestError(f"input {port.name} has shape {list(array.shape)}, wanted {list(port.shape)}")
        return array

    def _check_indices(self, arrays: Mapping[str, Array]) -> None:
        """The ports of a paged program are indices that kernels follow unseen."""
        empty = np.zeros((1, 1), np.int32)
        table = arrays.get("block_table", empty)
        limits = {
            "tokens": self.manifest.model.get("vocab_size"),
            "positions": table.shape[-1] * self.pool.page_size if "block_table" in arrays else None,
            "sequences": table.shape[0] if "block_table" in arrays else None,
            "rows": arrays["tokens"].size if "tokens" in arrays else None,
            "block_table": self.device.num_pages,
        }
        for name, limit in limits.items():
            array = arrays.get(name)
            if limit is None or array is None or array.size == 0:
                continue
            low, high = int(array.min()), int(array.max())
            if low < 0 or high >= limit:
                raise RequestError(f"input {name} holds {low if low < 0 else high}, wanted 0..{limit - 1}")

    def _output(self, port: PortSpec, dims: list[int]) -> Array:
        """A view of the port's buffer, which grows to the largest step so far."""
        shape = tuple(d if isinstance(d, int) else dims[self._symbols[d]] for d in port.shape)
        size = math.prod(shape)
        buffer = self._buffers.get(port.name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[port.name] = np.empty(size, dtype=DTYPES[port.dtype])
        return buffer[:size].reshape(shape)

    def _choose(self, rule: str, dims: list[int]) -> int:
        tokens, rows = (dims[self._symbols[name]] if name in self._symbols else 0 for name in ("T", "R"))
        for index, variant in self._variants:
            enough_tokens = variant.max_tokens is None or variant.max_tokens >= tokens
            enough_rows = variant.max_rows is None or variant.max_rows >= rows
            if variant.rule == rule and enough_tokens and enough_rows:
                return index
        raise RequestError(
            f"no variant of rule {rule!r} takes {tokens} tokens and {rows} rows; the largest takes "
            f"{self.max_tokens(rule)} tokens and {self.max_rows(rule)} rows"
        )

    def _limit(self, rule: str, symbol: str, field: str) -> int:
        bound = self.manifest.symbols[self._symbols[symbol]].high if symbol in self._symbols else 1
        limits = [getattr(variant, field) for _, variant in self._variants if variant.rule == rule]
        if not limits:
            raise RequestError(f"the program has no rule {rule!r}")
        return max(bound if limit is None else min(limit, bound) for limit in limits)


class Instance:
    """One row of a program's state: a sequence that is being read or written. Release it, or use it in a `with`."""

    def __init__(self, program: Program, handle: int) -> None:
        self.program = program
        self.handle = handle

    @property
    def length(self) -> int:
        """Tokens in its state."""
        return self.program.pool.length(self.handle)

    def step(self, tokens: npt.ArrayLike, rows: Literal["last", "all"] = "last") -> Array:
        """Appends tokens; returns the first output port, one row for the last token or one per token."""
        return self.program.advance([self], [tokens], rows)

    def fork(self) -> "Instance":
        """A copy that shares pages with this one until either is written."""
        return Instance(self.program, self.program.pool.fork(self.handle))

    def release(self) -> None:
        """Gives its pages back; a second call does nothing."""
        if self.handle >= 0:
            self.program.pool.release(self.handle)
            self.handle = -1

    def __enter__(self) -> "Instance":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class ValueInstance:
    """One run of a program whose state is values: of a numerical P system, of a reservoir. Starts with zeros."""

    def __init__(self, program: Program, inputs: Mapping[str, npt.ArrayLike], values: Array | None = None) -> None:
        names = {port.name for port in program.manifest.ports if port.direction == "in"}
        if unknown := sorted(set(inputs) - names):
            raise RequestError(f"the program has no input port {unknown[0]!r}; it has {', '.join(sorted(names))}")
        self.program, self.inputs = program, dict(inputs)
        self.values = np.zeros_like(program.device.save()) if values is None else values

    def step(
        self, inputs: Mapping[str, npt.ArrayLike] | None = None, *, rule: str = "step", copy: bool = True
    ) -> dict[str, Array]:
        """Runs one step on this instance's state; as `Program.step`, with the inputs that it was created with."""
        self.program._hold(self)
        return self.program._step(self.inputs | dict(inputs or {}), rule, copy, check=True)

    def fork(self) -> "ValueInstance":
        """A copy of it that goes its own way."""
        self.program._hold(None)
        return ValueInstance(self.program, self.inputs, self.values.copy())


def load(artifact: Artifact | str | os.PathLike[str], **options: Any) -> Any:
    """Loads any artifact: a `SystemProgram` for a P system of objects, a `CompoundProgram` for a topology, else a
    `Program`; the options are theirs."""
    from echoc.runtime.compound import CompoundProgram, is_compound
    from echoc.runtime.systems import SystemProgram, is_system

    opened = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
    if is_compound(opened):
        return CompoundProgram(opened, **options)
    return SystemProgram(opened, **options) if is_system(opened) else Program(opened, **options)


def _converted(port: PortSpec, given: npt.ArrayLike, dtype: np.dtype[Any]) -> Array:
    try:
        array = np.asarray(given)
        if array.size and not np.can_cast(array.dtype, dtype, casting="same_kind"):
            raise TypeError(f"{array.dtype} is not {port.dtype}")
        return np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)  # which makes vectors of scalars
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"input {port.name} wants {port.dtype} of shape {list(port.shape)}: {error}") from None


def _usable_variants(artifact: Artifact, deterministic: bool) -> list[tuple[int, VariantSpec]]:
    """(manifest index, variant) in the order in which they are tried: smallest first."""
    variants = list(enumerate(artifact.manifest.variants))
    if not variants:
        raise ArtifactError(f"{artifact.path} has no variants; compile the model again")
    wanted = [(i, v) for i, v in variants if v.deterministic == deterministic]
    if deterministic and not wanted:
        raise DeviceError(f"{artifact.path} has no deterministic variants; compile the model again to get them")
    infinite = float("inf")

    def size(entry: tuple[int, VariantSpec]) -> tuple[float, float]:
        v = entry[1]
        return (
            infinite if v.max_tokens is None else v.max_tokens,
            infinite if v.max_rows is None else v.max_rows,
        )

    return sorted(wanted or variants, key=size)


def _pool_size(artifact: Artifact, num_pages: int | None, state_bytes: int | None, most_pages: int | None) -> PageCount:
    """Pages of the pool: as asked, or as many as fit the bytes asked for, else those that the device has."""
    page_bytes = artifact.manifest.page_bytes
    if num_pages is not None:
        if num_pages < 1:
            raise DeviceError(f"num_pages is {num_pages}, wanted 1 or more")
        return num_pages
    if page_bytes == 0:  # nothing is stored: pages only count tokens
        return 1 << 16 if most_pages is None else most_pages
    most = (1 << 31) - 1 if most_pages is None else most_pages

    def fitting(budget: int) -> int:
        if budget < page_bytes:
            raise DeviceError(f"{budget} bytes for state hold no page of {page_bytes} bytes; ask for more")
        return min(budget // page_bytes, most)

    return fitting if state_bytes is None else fitting(state_bytes)
