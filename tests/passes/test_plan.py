"""Launches between two barriers share no memory that one of them writes; what is a thread's own needs no barrier."""

import itertools
import random

import pytest

from echoc.compiler.passes.plan import Access, Launch, place_buffers, set_barriers

STATE = ("state", 0)


def random_launches(draw: random.Random, count: int) -> list[Launch]:
    """Each writes one new buffer, or a state, and reads buffers that came before."""
    launches: list[Launch] = []
    made: list[Access] = []
    for at in range(count):
        accesses = [Access(a.key, a.place, a.size, False) for a in draw.sample(made[-6:], min(len(made), 2))]
        if draw.random() < 0.2:
            accesses.append(Access("kept", STATE, 0, draw.random() < 0.5))
        alike = draw.random() < 0.4 and not any(a.written for a in accesses)
        made.append(Access(f"b{at}", None, draw.randrange(1, 900), True))
        launches.append(Launch(f"k{at}", [*accesses, made[-1]], alike=alike))
    return launches


def stages(launches: list[Launch]) -> list[list[Launch]]:
    numbers = itertools.accumulate(launch.barrier for launch in launches)
    grouped = itertools.groupby(zip(numbers, launches, strict=True), key=lambda pair: pair[0])
    return [[launch for _, launch in group] for _, group in grouped]


@pytest.mark.parametrize("seed", range(20))
def test_no_two_launches_of_a_stage_clash(seed: int) -> None:
    draw = random.Random(seed)
    launches = random_launches(draw, 40)
    set_barriers(launches)
    plan = place_buffers(launches, {}, in_stages=True)

    def span(access: Access) -> tuple[object, int, int]:
        if access.place is not None:
            return access.place, 0, 1
        low = plan.offsets[access.key]
        assert low + int(str(access.size)) <= plan.arena_bytes
        return "arena", low, low + int(str(access.size))

    for stage in stages(launches):
        for one, other in itertools.combinations(stage, 2):
            for a, c in itertools.product(one.accesses, other.accesses):
                if {a.key, c.key} & plan.own or not (a.written or c.written):
                    continue
                (where, low, high), (there, begin, end) = span(a), span(c)
                assert where != there or high <= begin or end <= low


@pytest.mark.parametrize("seed", range(20))
def test_buffers_that_are_alive_together_lie_apart(seed: int) -> None:
    draw = random.Random(seed)
    launches = random_launches(draw, 40)
    set_barriers(launches)
    plan = place_buffers(launches, {}, in_stages=True)
    content: dict[tuple[bool, int], object] = {}
    for launch in launches:
        for access in launch.accesses:
            if access.place is None and not access.written:
                low = plan.offsets[access.key]
                assert all(content.get((access.key in plan.own, at)) == access.key for at in range(low, low + 1))
        for access in launch.accesses:
            if access.place is None and access.written:
                low = plan.offsets[access.key]
                content |= {(access.key in plan.own, at): access.key for at in range(low, low + int(str(access.size)))}


def test_own_results_need_no_barrier() -> None:
    x, y, z = (Access(name, None, 64, True) for name in "xyz")
    read = {a.key: Access(a.key, None, 64, False) for a in (x, y, z)}
    launches = [
        Launch("product", [x]),
        Launch("norm", [read["x"], y], alike=True),
        Launch("product", [read["y"], z]),
        Launch("norm", [read["z"], Access("last", None, 64, True)], alike=True),
    ]
    set_barriers(launches)
    assert [launch.barrier for launch in launches] == [False, True, False, True]
    plan = place_buffers(launches, {}, in_stages=True)
    assert plan.own == {"y", "last"} and plan.own_bytes == 64 and plan.arena_bytes == 128
