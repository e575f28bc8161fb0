"""Numbers for tests: a machine with round limits, the shape of Qwen3-0.6B, replies of an engine."""

from echoc.bench.floors import ModelShape
from echoc.bench.probes import Limits
from echoc.bench.process import Reply
from echoc.bench.states import CoreState

LIMITS = Limits(
    threads=2,
    read_bytes=1 << 30,
    read_one=25e9,
    read_all=50e9,
    fma_f32_one=100e9,
    fma_f32=200e9,
    dot_bf16=400e9,
    dot_int8=800e9,
    amx_bf16=0.0,
    amx_int8=0.0,
)
QWEN3 = ModelShape(block_weights=440401920, head_weights=151936 * 1024, layers=28, heads=16, kv_heads=8, head_dim=128)
FREE = CoreState("free", 2.0, 1.0)
SHARED = CoreState("shared-core", 1.1, 1.0)
CONTENDED = CoreState("contended", 1.4, 0.6)


def reply(seconds: float = 1.0, run_delay: float = 0.0, foreign: float = 0.0, steal: float = 0.0) -> Reply:
    """A reply of an engine that used two CPUs fully, with so many seconds lost to others."""
    cpu = 2 * seconds - foreign
    usage = {"cpu": cpu, "run_delay": run_delay, "machine_busy": cpu + foreign, "machine_steal": steal}
    return Reply(seconds, usage, 0, 0)
