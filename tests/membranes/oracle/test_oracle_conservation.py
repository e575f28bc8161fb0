"""Matter is conserved: a step changes the whole by what its applications make less what they take."""

from collections import Counter

import pytest
from random_systems import random_system

from echoc.compiler.ir.algebra import Rule
from echoc.compiler.ir.oracle import Configuration, apply, choose, generator, start


def total(configuration: Configuration) -> Counter[str]:
    objects = Counter(configuration.environment)
    for cell in configuration.cells.values():
        objects.update(cell.objects)
    return objects


def net(rule: Rule) -> Counter[str]:
    """What one application adds to the whole system; inner membranes stay or dissolve."""
    change: Counter[str] = Counter()
    made = [rule.produce, *(s.objects for s in rule.send), *(r.produce for i in rule.inner for r in i.results)]
    for objects in made:
        for name, count in objects:
            change[name] += count
    for objects in (rule.consume, *(i.consume for i in rule.inner)):
        for name, count in objects:
            change[name] -= count
    return change


@pytest.mark.parametrize("family", ["transition", "pdp", "chemical", "active"])
def test_the_whole_changes_by_what_the_applications_make(family: str) -> None:
    steps = 0
    for seed in range(60):
        s = random_system(seed, family)
        configuration = start(s)
        for step in range(8):
            chosen = choose(s, configuration, generator(seed, step))
            after = apply(s, configuration, chosen)
            if not any(len(i.results) > 1 for a in chosen for i in s.rules[a.rule].inner):  # division copies
                expected = total(configuration)
                for a in chosen:
                    for name, count in net(s.rules[a.rule]).items():
                        expected[name] += count * a.times
                assert total(after) == expected
                steps += bool(chosen)
            configuration = after
    assert steps > 100
