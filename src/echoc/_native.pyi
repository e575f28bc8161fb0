"""Native parts of echoc's runtime."""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


def request_amx() -> bool:
    """
    Asks the kernel for AMX tiles once per process; returns whether it granted them.
    """

class Executor:
    """A kernel library, a thread team and the launch lists they run."""

    def __init__(self, library: str, num_threads: int) -> None: ...

    def bind(self, arena: int, scratch: int, scratch_stride: int, weights: Sequence[int], states: Sequence[tuple[int, int]], num_ports: int) -> None: ...

    def add_variant(self, launches: Sequence[tuple[str, bool, Sequence[tuple[str, int]]]]) -> int: ...

    def step(self, variant: int, dims: Sequence[int], ports: Sequence[Annotated[NDArray, dict(order='C', device='cpu', writable=False)]]) -> None: ...

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None: ...

    def counters(self) -> list[tuple[int, int, int, list[int]]]: ...

    def set_profiling(self, on: bool) -> None: ...

    @property
    def num_threads(self) -> int: ...

def crc32(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], num_threads: int = 1) -> int:
    """CRC-32 as in zip and zlib, of a u8 array, on several threads."""

class Pager:
    """
    Pages shared between sequences: reference counts, copy on write, prefix cache.
    """

    def __init__(self, num_pages: int, page_size: int, prefix_cache: bool = True, salt: int = 0) -> None: ...

    def create(self, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], cache_salt: int = 0, use_cache: bool = True) -> tuple[int, int]: ...

    def fork(self, sequence: int) -> int: ...

    def append(self, sequence: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> list[tuple[int, int]] | None: ...

    def commit(self, sequence: int) -> None: ...

    def release(self, sequence: int) -> None: ...

    def length(self, sequence: int) -> int: ...

    def pages_for(self, sequence: int, num_tokens: int) -> int: ...

    def num_pages_of(self, sequence: int) -> int: ...

    def pages(self, sequence: int) -> list[int]: ...

    def references(self, page: int) -> int: ...

    def drop_cache(self) -> None: ...

    def fill_block_table(self, sequences: Sequence[int], table: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

    @property
    def num_pages(self) -> int: ...

    @property
    def num_cached(self) -> int: ...

    @property
    def num_available(self) -> int: ...

    @property
    def num_sequences(self) -> int: ...

    @property
    def page_size(self) -> int: ...

class SamplingSpec:
    """The numbers behind one output of a request; see SamplingParams."""

    def __init__(self) -> None: ...

    @property
    def temperature(self) -> float: ...

    @temperature.setter
    def temperature(self, arg: float, /) -> None: ...

    @property
    def top_k(self) -> int: ...

    @top_k.setter
    def top_k(self, arg: int, /) -> None: ...

    @property
    def top_p(self) -> float: ...

    @top_p.setter
    def top_p(self, arg: float, /) -> None: ...

    @property
    def min_p(self) -> float: ...

    @min_p.setter
    def min_p(self, arg: float, /) -> None: ...

    @property
    def repetition_penalty(self) -> float: ...

    @repetition_penalty.setter
    def repetition_penalty(self, arg: float, /) -> None: ...

    @property
    def presence_penalty(self) -> float: ...

    @presence_penalty.setter
    def presence_penalty(self, arg: float, /) -> None: ...

    @property
    def frequency_penalty(self) -> float: ...

    @frequency_penalty.setter
    def frequency_penalty(self, arg: float, /) -> None: ...

    @property
    def min_tokens(self) -> int: ...

    @min_tokens.setter
    def min_tokens(self, arg: int, /) -> None: ...

    @property
    def logprobs(self) -> int: ...

    @logprobs.setter
    def logprobs(self, arg: int, /) -> None: ...

    @property
    def seed(self) -> int: ...

    @seed.setter
    def seed(self, arg: int, /) -> None: ...

    @property
    def stream(self) -> int: ...

    @stream.setter
    def stream(self, arg: int, /) -> None: ...

    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...

    @logit_bias.setter
    def logit_bias(self, arg: Sequence[tuple[int, float]], /) -> None: ...

    @property
    def banned(self) -> list[int]: ...

    @banned.setter
    def banned(self, arg: Sequence[int], /) -> None: ...

    @property
    def allowed(self) -> list[int]: ...

    @allowed.setter
    def allowed(self, arg: Sequence[int], /) -> None: ...

    @property
    def bad_sequences(self) -> list[list[int]]: ...

    @bad_sequences.setter
    def bad_sequences(self, arg: Sequence[Sequence[int]], /) -> None: ...

    @property
    def end_tokens(self) -> list[int]: ...

    @end_tokens.setter
    def end_tokens(self, arg: Sequence[int], /) -> None: ...

class Sampler:
    """The sampling state of one sequence."""

    def __init__(self, spec: SamplingSpec, prompt: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def fork(self, stream: int) -> Sampler: ...

    def accept(self, token: int) -> None: ...

def sample(samplers: Sequence[Sampler], logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Sequence[int]) -> list[tuple[int, tuple[float, int, list[tuple[int, float]]] | None]]: ...

def token_logprobs(logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Sequence[int], tokens: Sequence[int], count: int) -> list[tuple[float, int, list[tuple[int, float]]]]: ...

def uniform(seed: int, stream: int, position: int) -> float: ...

def philox(key: int, counter: Sequence[int]) -> list[int]: ...

def packed_nbytes(fmt: str, group: int, num_sources: int, N: int, K: int) -> int:
    """Bytes of `num_sources` weights [N, K] packed together."""

def row_nbytes(fmt: str, group: int, K: int) -> int:
    """Bytes from one prepared activation row to the next."""

def pack(fmt: str, group: int, sources: Sequence[Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)]], transposed: bool = False, threads: int = 1) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
    """
    Packs 2-D sources of equal shape ([N, K], or [K, N] when transposed; float32, float16, or bfloat16 viewed as uint16) with interleaved panels into a new uint8 array.
    """

def pack_into(fmt: str, group: int, sources: Sequence[Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)]], transposed: bool, out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], threads: int = 1) -> None:
    """Like pack, into a given uint8 array of packed_nbytes bytes."""

def fill_random(fmt: str, group: int, num_sources: int, N: int, K: int, seed: int, index: int, std: float, threads: int = 1) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
    """
    Random packed weights, nearly normal. An element depends on (seed, index, source, n, k) alone and every format rounds the same values.
    """

def fill_random_into(fmt: str, group: int, num_sources: int, N: int, K: int, seed: int, index: int, std: float, out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], threads: int = 1) -> None:
    """Like fill_random, into a given uint8 array of packed_nbytes bytes."""

def unpack(fmt: str, group: int, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], num_sources: int, N: int, K: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None))]:
    """The values of packed weights as f32 [num_sources, N, K]."""

class RunKernel:
    """A compiled system whose membranes stay."""

    def __init__(self, path: str, entry: str, places: int, cells: int, instances: int, scratch_bytes: int) -> None: ...

    def advance(self, *, counts: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu')], charges: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu')], time: Annotated[NDArray[numpy.float64], dict(shape=(None,), order='C', device='cpu')], step: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')], index: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu')], seed: int, steps: int, until: float, recorded: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], every: int, times: Annotated[NDArray[numpy.float64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, records: Annotated[NDArray[numpy.int64], dict(shape=(None, None, None), order='C', device='cpu')], records_done: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')], applications: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu')] | None, halted: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], error: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], where: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')], num_threads: int) -> None: ...
