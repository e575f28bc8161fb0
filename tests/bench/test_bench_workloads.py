import pytest

from echoc.bench.workloads import Workload, make_workloads
from echoc.errors import EchoError


def test_all_combinations() -> None:
    labels = [workload.label for workload in make_workloads([512], 32, [512, 8192], [1, 8])]
    assert labels == [
        "prefill 512",
        "decode 32 after 512",
        "decode 32 after 8192",
        "decode 32 x 8 after 512",
        "decode 32 x 8 after 8192",
    ]


def test_tokens_counted_for_rates() -> None:
    assert Workload("prefill", 512).tokens == 512
    assert Workload("decode", 512, 32).tokens == 32
    assert Workload("batched", 512, 32, 8).tokens == 256


@pytest.mark.parametrize(
    "arguments", [("train", 1), ("prefill", 0), ("decode", 512, 0), ("batched", 512, 4, 0), ("prefill", -3)]
)
def test_impossible_workloads(arguments: tuple[str, int]) -> None:
    with pytest.raises(EchoError):
        Workload(*arguments)


def test_nothing_to_time() -> None:
    with pytest.raises(EchoError, match="nothing to time"):
        make_workloads([], 0, [512], [8])
