import pytest

from echoc.bench.stats import summarise
from echoc.errors import EchoError


def test_summary_of_several_values() -> None:
    summary = summarise([4.0, 1.0, 2.0])
    assert (summary.median, summary.low, summary.high, summary.count) == (2.0, 1.0, 4.0, 3)
    assert summary.spread == pytest.approx(1.5)


def test_inverse_turns_the_range_around() -> None:
    rate = summarise([1.0, 2.0, 4.0]).map_inverse(8.0)
    assert (rate.median, rate.low, rate.high) == (4.0, 2.0, 8.0)


def test_no_values_is_an_error() -> None:
    with pytest.raises(EchoError, match="no samples"):
        summarise([])
