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


def test_contexts_of_a_batch_may_differ() -> None:
    one, two = make_workloads([], 4, [512], [5], mixed=(128, 384))
    assert (one.label, one.contexts) == ("decode 4 after 512", [512])
    assert two.label == "decode 4 x 5 after 128 to 384"
    assert two.contexts == [128, 192, 256, 320, 384]
    assert two.request()[1] == {"sequences": 5, "context": 128, "num_tokens": 4, "longest": 384}
    with pytest.raises(EchoError, match="384 to 128"):
        Workload("batched", 384, 4, 5, 128)
    with pytest.raises(EchoError, match="a batch takes them"):
        Workload("decode", 128, 4, 1, 384)


def test_nothing_to_time() -> None:
    with pytest.raises(EchoError, match="nothing to time"):
        make_workloads([], 0, [512], [8])
