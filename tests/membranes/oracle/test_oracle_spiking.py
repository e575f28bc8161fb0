"""Spiking neural P systems: regular guards, delays, closed neurons, forgetting."""

from echoc.compiler.ir.algebra import Bound, Cell, Group, Guard, Rule, Send, System, Target, bag
from echoc.compiler.ir.oracle import halted, run, start, trace

SPIKE = (Send(Target.SYNAPSES, bag("a")),)
OUT = (Send(Target.OUT, bag("a")),)


def net(spikes: list[int], rules: list[Rule], links: list[tuple[int, int]]) -> System:
    cells = tuple(Cell(str(i), None, bag({"a": n})) for i, n in enumerate(spikes))
    groups = [
        Group(tuple(i for i, r in enumerate(rules) if r.label == c.label), Bound.AT_MOST, 1)
        for c in cells
        if any(r.label == c.label for r in rules)
    ]
    return System("spiking", cells, tuple(rules), tuple(groups), links=tuple(links))


def spikes(s: System, steps: int) -> list[list[int]]:
    return [[c.objects.get("a", 0) for c in configuration.cells.values()] for configuration, _ in trace(s, steps, 0)]


def test_a_neuron_fires_once_a_step_to_all_its_synapses() -> None:
    s = net([5, 0, 0], [Rule("0", bag("a"), send=SPIKE)], [(0, 1), (0, 2)])
    assert spikes(s, 2) == [[5, 0, 0], [4, 1, 1], [3, 2, 2]]


def test_the_guard_covers_all_spikes_of_the_neuron() -> None:
    odd = Guard("in", "a", threshold=0, period=2, residues=(1,))
    s = net([5, 4, 0], [Rule(n, bag("a"), send=SPIKE, guard=odd) for n in "01"], [(0, 2), (1, 2)])
    assert spikes(s, 2) == [[5, 4, 0], [4, 4, 1]]  # four are even: it halts


def test_forgetting_removes_spikes() -> None:
    assert spikes(net([3], [Rule("0", bag({"a": 3}), guard=Guard("eq", "a", 3))], []), 1) == [[3], [0]]


def test_a_delay_closes_the_neuron_and_its_spikes_leave_later() -> None:
    """Rule with delay 2 in step 1: closed in steps 1 and 2, spikes in step 3, fires again in step 4."""
    delayed = Rule("0", bag("a"), send=SPIKE, delay=2)
    s = net([2, 0], [delayed], [(0, 1)])
    assert spikes(s, 6) == [[2, 0], [1, 0], [1, 0], [1, 1], [0, 1], [0, 1], [0, 2]]


def test_spikes_that_arrive_at_a_closed_neuron_are_lost() -> None:
    """Neuron 1 sends every step; neuron 0 is closed in steps 1 and 2 and open to what comes in step 3."""
    rules = [Rule("0", bag("b"), send=SPIKE, delay=2), Rule("1", bag("a"), send=SPIKE)]
    s = net([0, 9], rules, [(1, 0)])
    cells = (Cell("0", None, bag("b")), s.cells[1])
    s = System(s.model, cells, s.rules, s.groups, links=s.links)
    assert [row[0] for row in spikes(s, 5)] == [0, 0, 0, 1, 2, 3]


def test_a_closed_neuron_is_not_the_end() -> None:
    s = net([1, 0], [Rule("0", bag("a"), send=SPIKE, delay=3)], [(0, 1)])
    end = run(s, None, 0)
    assert end.step == 4 and end.cells[1].objects == {"a": 1}
    assert not halted(s, run(s, 2, 0)) and halted(s, end)


def test_the_output_neuron_spikes_into_the_environment() -> None:
    s = net([3, 0], [Rule("0", bag("a"), send=(*SPIKE, *OUT))], [(0, 1)])
    end = run(s, None, 0)
    assert end.environment == {"a": 3} and end.cells[1].objects == {"a": 3}


def test_a_cycle_of_three_neurons_passes_one_spike_around() -> None:
    rules = [Rule(n, bag("a"), send=SPIKE) for n in "012"]
    assert spikes(net([1, 0, 0], rules, [(0, 1), (1, 2), (2, 0)]), 3) == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_start_leaves_nothing_closed() -> None:
    s = net([1], [Rule("0", bag("a"), delay=1)], [])
    assert start(s).cells[0].closed == 0 and run(s, 1, 0).cells[0].closed == 1
