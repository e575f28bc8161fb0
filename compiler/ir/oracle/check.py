"""Whether a claimed choice of applications is one that a step may make."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from echoc.compiler.ir.algebra import Mode, System, Target

from .binding import Binding, Bindings
from .configuration import Application, Configuration, StepError, describe, num_targets, target_slots
from .draft import Draft
from .events import WAIT, next_moment, settle


def check(system: System, configuration: Configuration, applications: Sequence[Application]) -> None:
    """Raises StepError with the reason when the applications are not a choice that the mode may make.

    Checked: that rules fit their membranes (labels, nesting, charges, closed cells, guard, promoters, inhibitors), that
    targets are among those to choose from, no more is consumed than there is, no priority barred them, no bound is
    exceeded, no claims contradict each other, and that no application is left out that the mode asks for.
    The applications may come in any order and with any split of `times`. Weak priority makes the order of choosing
    matter; as room only shrinks, choosing first whatever may be chosen finds an order if there is one.
    """
    if system.events:
        configuration = settle(system, configuration)
        if _check_wait(system, configuration, applications):
            return
    bindings = Bindings(system, configuration)
    claimed = _collect(system, bindings, applications)
    _check_targets(system, bindings, applications)
    legal = bindings.all()
    for index, membranes in claimed.keys() - set(legal):
        raise StepError(f"{describe(system, index)} is barred in {membranes} by a rule of higher priority")
    draft = Draft(system, configuration, bindings)
    if system.mode in (Mode.SEQUENTIAL, Mode.GILLESPIE):
        _check_single(draft, legal, claimed, applications)
    elif system.mode is Mode.ORDERED:
        _check_ordered(draft, legal, claimed)
    else:
        _replay(draft, legal, claimed)
        _check_maximal(draft, legal)


def _check_wait(system: System, configuration: Configuration, applications: Sequence[Application]) -> bool:
    """Whether the choice is to wait until a trigger may turn, which it must be if nothing happens before."""
    moment = next_moment(system, configuration) - configuration.time
    after = sum(a.after for a in applications)
    if all(a.rule != WAIT for a in applications):
        if after > moment or (not applications and moment < math.inf):
            raise StepError(f"a trigger may turn after {moment}, before the step of {after or 'no end'}")
        return False
    near = abs(after - moment) <= 1e-9 * (configuration.time + after)
    if len(applications) != 1 or not math.isfinite(moment) or not near:
        raise StepError(
            f"a wait of {after} with {len(applications) - 1} applications; a trigger may turn after {moment}"
        )
    return True


def _collect(system: System, bindings: Bindings, applications: Sequence[Application]) -> Counter[Binding]:
    """The applications by binding, each of which is possible by itself."""
    claimed: Counter[Binding] = Counter()
    for application in applications:
        if not 0 <= application.rule < len(system.rules):
            raise StepError(f"there is no rule {application.rule}; the system has {len(system.rules)}")
        rule = system.rules[application.rule]
        text = describe(system, application.rule)
        bound = 1 + len(rule.inner)
        if application.times < 1:
            raise StepError(f"{text} is applied {application.times} times; leave out what is not applied")
        if len(application.membranes) != bound + num_targets(rule):
            raise StepError(
                f"{text} binds {bound} membranes and {num_targets(rule)} targets; found {len(application.membranes)}"
            )
        membranes = application.membranes[:bound]
        wrong = bindings.fits(rule, membranes) or bindings.permits(rule, membranes)
        if wrong:
            raise StepError(f"{text} {wrong}")
        claimed[application.rule, membranes] += application.times
    return claimed


def _check_targets(system: System, bindings: Bindings, applications: Sequence[Application]) -> None:
    """Targets are there to be chosen, and chosen once for each rule and holder unless they are children."""
    once: dict[tuple[int, int, int], int] = {}
    for application in applications:
        rule = system.rules[application.rule]
        holder = application.membranes[0]
        chosen = application.membranes[1 + len(rule.inner) :]
        for slot, ((kind, label), cell) in enumerate(zip(target_slots(rule), chosen, strict=True)):
            text = describe(system, application.rule)
            if cell not in bindings.targets(holder, kind, label):
                raise StepError(
                    f"{text} chooses membrane #{cell}, which is no {label} to choose for '{kind}' from #{holder}"
                )
            if kind != Target.IN and once.setdefault((application.rule, holder, slot), cell) != cell:
                raise StepError(f"{text} chooses two targets {label} from membrane #{holder} in one step")


def _check_single(
    draft: Draft, legal: Sequence[Binding], claimed: Counter[Binding], applications: Sequence[Application]
) -> None:
    live = draft.unbarred(b for b in legal if draft.room(b, bounded=draft.system.mode is Mode.SEQUENTIAL) > 0)
    if sum(claimed.values()) > 1:
        raise StepError(f"mode {draft.system.mode} applies one rule a step; found {sum(claimed.values())}")
    if draft.system.mode is Mode.GILLESPIE:
        from .gillespie import propensities

        live = list(propensities(draft.system, draft.configuration))
        if any(not (a.after >= 0 and math.isfinite(a.after)) for a in applications):
            raise StepError("the time to an event must be finite and not negative")
    if not claimed and live:
        raise StepError(f"nothing is applied, but {describe(draft.system, live[0][0])} is applicable")
    for binding in claimed:
        if binding not in live:
            raise StepError(f"{describe(draft.system, binding[0])} is not among the rules that may be drawn")


def _replay(draft: Draft, legal: Sequence[Binding], claimed: Counter[Binding]) -> None:
    """Chooses the claimed applications in an order in which each may be chosen, or says why there is none."""
    bounded = draft.system.mode is not Mode.DCBA
    waiting = dict(claimed)
    while waiting:
        allowed = set(draft.unbarred(b for b in legal if draft.room(b, bounded=bounded) > 0))
        ready = [b for b in waiting if b in allowed]
        if not ready:
            binding = next(iter(waiting))
            if draft.room(binding, bounded=bounded) > 0:
                raise StepError(
                    f"{describe(draft.system, binding[0])} has to wait in {binding[1]} for a rule of higher priority "
                    "that is still applicable"
                )
            raise StepError(draft.explain(binding))
        for binding in ready:
            room = draft.room(binding, bounded=bounded)
            if room < waiting[binding]:
                text = draft.explain(binding) if room <= 0 else _too_often(draft, binding, room, waiting[binding])
                raise StepError(text)
            draft.add(binding, waiting.pop(binding))


def _too_often(draft: Draft, binding: Binding, room: float, times: int) -> str:
    why = "its objects suffice for" if draft.supply(binding) == room else "the bound still allows"
    return f"{describe(draft.system, binding[0])} is applied {times} times in {binding[1]}; {why} {room:g}"


def _check_maximal(draft: Draft, legal: Sequence[Binding]) -> None:
    bounded = draft.system.mode is not Mode.DCBA
    for binding in legal:
        if draft.room(binding, bounded=bounded) <= 0 or (bounded and not draft.must(binding)):
            continue
        if not bounded and _left_for_another(draft, binding, legal):
            continue
        raise StepError(
            f"the choice is not maximal: {describe(draft.system, binding[0])} can still be applied in {binding[1]}"
        )


def _left_for_another(draft: Draft, binding: Binding, legal: Sequence[Binding]) -> bool:
    """Mode DCBA: whether a block was discarded for one of other charges, whose objects then went to its competitors."""
    wanted = draft.claims(binding)
    return any(
        draft.clash(other) is None
        and draft.supply(other) == 0
        and any(key in wanted and wanted[key] != value for key, value in draft.claims(other).items())
        for other in legal
    )


def _check_ordered(draft: Draft, legal: Sequence[Binding], claimed: Counter[Binding]) -> None:
    """Kernel P systems: one group after another, each on what the ones before left."""
    for g in range(len(draft.system.groups)):
        here = [b for b in legal if draft.group_of[b[0]] == g and not draft.closed_to(g, b[1][0])]
        wanted = Counter({b: n for b, n in claimed.items() if draft.group_of[b[0]] == g})
        for binding in wanted:
            if binding not in here:
                raise StepError(f"{describe(draft.system, binding[0])} comes after the end of the step of {binding[1]}")
        _replay(draft, here, wanted)
        _check_maximal(draft, here)
