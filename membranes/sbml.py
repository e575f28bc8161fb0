"""Chemical systems in SBML, Levels 2 and 3, as P systems of the Gillespie mode. Needs python-libsbml.

Species are objects counted in their substance units, compartments membranes, reactions rules. Where every reaction and
its rate stay within one compartment, each compartment is a membrane in the tree of `outside` (or all of them in one
skin); otherwise all species stand in one membrane, since SBML names them uniquely and a rate law sees one membrane.

A rate law becomes a number c where it is c times the counts of its reactants, each once; else it stays an expression of
counts. In it a species means its concentration (count / size) unless hasOnlySubstanceUnits; parameters, sizes,
functions and assignment rules are put in. A reversible reaction becomes two rules if its law is a difference.

Events set species, by triggers that compare the state or, linearly, the time, at once or after a delay; those without
priorities that are due together happen in the order of the file.

Whatever a jump process of counts cannot do exactly is refused by name: rate and algebraic rules, constraints, laws of
time or of the past, priorities among events, events that set parameters or sizes, fast reactions, conversion factors,
amounts and stoichiometries that are not whole numbers, required packages.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from echoc.compiler.ir.algebra import Bag, Cell, Event, Group, Mode, Rule, System, Where, bag
from echoc.compiler.ir.expression import TIME, Expression, evaluate, name, names, number, render
from echoc.compiler.ir.moments import solve
from echoc.errors import CompileError

from .markup import check_xml
from .mathml import Formulas, MathError
from .rate_laws import halves, mass_action, subtracts
from .source import SourceError, SourceText
from .validate import validate

MAX_COUNT = 2**63 - 1
MAX_RULES = 50  # assignment rules, each using the next
PART_OF_CORE = ("l3v2extendedmath", "layout", "render")  # what libsbml holds as packages though it is not or only shows


def read(path: str | os.PathLike[str], *, text: str | None = None) -> System:
    """The chemical system of an SBML file, or of `text` under the name `path`.

    Raises CompileError where python-libsbml is missing, SourceError (a CompileError) with file, line and column for a
    text that is not SBML or asks for more than the module says, InvalidSystem for a system that makes no sense.
    What an assignment rule gives a quantity is in `features` as "value of <id>": a formula of counts, as C.
    """
    reader = _reader(path, text)
    return validate(reader.system(), reader.source)


def values(path: str | os.PathLike[str], *, text: str | None = None) -> dict[str, Expression]:
    """What is no object but has a value: parameters and species that follow assignment rules, species that nothing
    changes. Expressions of counts by species. Raises as `read` does."""
    reader = _reader(path, text)
    reader.check_features()
    reader.quantities()
    still = {one.id: one.value for one in reader.species.values() if one.value is not None}
    return still | {symbol: reader.put_in(symbol, rule, False) for symbol, rule in reader.assigned.items()}


def _reader(path: str | os.PathLike[str], text: str | None) -> _Reader:
    try:
        libsbml = import_module("libsbml")
    except ImportError as error:
        raise CompileError(
            "reading SBML needs python-libsbml, which is not installed; install it with: pip install 'echoc[sbml]'"
        ) from error
    source = SourceText.read(path, text)
    check_xml(source)
    document = libsbml.readSBMLFromString(source.text)
    for i in range(document.getNumErrors()):
        problem = document.getError(i)
        if problem.getSeverity() >= libsbml.LIBSBML_SEV_ERROR:
            where = Where(source.file, max(problem.getLine(), 1), max(problem.getColumn(), 1))
            raise source.error_at(" ".join(problem.getMessage().split()), where)
    if document.getModel() is None:
        raise source.error("this is not an SBML model", 0, "<sbml> with a <model>")
    return _Reader(libsbml, source, document)


@dataclass
class _Species:
    """count: at the start. value: what stands for it where it is no object, in the unit that formulas see."""

    id: str
    compartment: str
    count: int
    element: Any
    value: Expression | None = None


@dataclass
class _Reaction:
    """One direction of a reaction; `law` sees counts by species."""

    consume: Bag
    produce: Bag
    law: Expression
    where: Where


@dataclass
class _Reader:
    libsbml: Any
    source: SourceText
    document: Any
    formulas: Formulas = field(init=False)
    constants: dict[str, float] = field(default_factory=dict)
    assigned: dict[str, Any] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    species: dict[str, _Species] = field(default_factory=dict)
    known: dict[tuple[str, bool], Expression] = field(default_factory=dict)  # what rules give, at the start or not
    opened: list[str] = field(default_factory=list)  # assignment rules being put in
    sets: dict[str, Any] = field(default_factory=dict)  # what events set: the last assignment to each

    def __post_init__(self) -> None:
        self.model = self.document.getModel()
        definitions = {f.getId(): f.getMath() for f in self.model.getListOfFunctionDefinitions()}
        self.formulas = Formulas(self.libsbml, definitions)

    def refuse(self, element: Any, found: str, expected: str = "") -> SourceError:
        return self.source.error_at(found, self.where(element), expected)

    def where(self, element: Any) -> Where:
        return Where(self.source.file, max(element.getLine(), 1), max(element.getColumn(), 1))

    def system(self) -> System:
        self.check_features()
        self.quantities()
        reactions = [r for reaction in self.model.getListOfReactions() for r in self.reaction(reaction)]
        events = [self.event(e) for e in self.model.getListOfEvents() if e.isSetTrigger()]
        cells, home = self.membranes([*map(_seen, reactions), *map(_looked_at, events)])
        rules = tuple(self.rule(r, home, cells[0].label) for r in reactions)
        groups = (Group(tuple(range(len(rules)))),) if rules else ()
        features = {f"value of {symbol}": render(self.put_in(symbol, rule, False), str)
                    for symbol, rule in self.assigned.items()}  # fmt: skip
        title = self.model.getId() or self.model.getName()
        placed = tuple(replace(e, label=next((home[o] for o in _looked_at(e)), cells[0].label)) for e in events)
        return System("chemical", tuple(cells), rules, groups, Mode.GILLESPIE, name=title, features=features,
                      events=placed)  # fmt: skip

    def check_features(self) -> None:
        """Refuses what cannot be done exactly."""
        model = self.model
        for i in range(self.document.getNumPlugins()):
            package = self.document.getPlugin(i).getPackageName()
            if package not in PART_OF_CORE and self.document.getPackageRequired(package):
                raise self.refuse(model, f"the package {package!r}, which changes the model's meaning", "core SBML")
        for element in model.getListOfConstraints():
            raise self.refuse(element, f"the constraint {element.getId()!r} is not supported", "a model without them")
        self.check_events()
        for rule in model.getListOfRules():
            if not rule.isAssignment():
                kind = "rate rule" if rule.isRate() else "algebraic rule"
                target = f" of {rule.getVariable()}" if rule.isRate() else ""
                raise self.refuse(rule, f"the {kind}{target} is not supported", "assignment rules only")
            self.assigned[rule.getVariable()] = rule
        for assignment in model.getListOfInitialAssignments():
            self.initial[assignment.getSymbol()] = assignment
        if model.isSetConversionFactor():
            raise self.refuse(model, "the conversion factor of the model is not supported", "none")

    def check_events(self) -> None:
        """Refuses of events what is not supported, and notes what they set."""
        events = self.model.getListOfEvents()
        for event in events:
            name = f"the event {event.getId()!r}"
            if event.isSetPriority() and len(events) > 1:
                raise self.refuse(event.getPriority(), f"the priority of {name} is not supported", "no priorities")
            for assignment in event.getListOfEventAssignments():
                target = assignment.getVariable()
                species = self.model.getSpecies(target)
                if species is None or species.getConstant():
                    raise self.refuse(assignment, f"{name} sets {target}, which is no species that may change",
                                      "events that set species")  # fmt: skip
                if assignment.isSetMath():
                    self.sets[target] = assignment

    # quantities

    def quantities(self) -> None:
        """The values of parameters and sizes, the counts of species, each once all that it depends on is known."""
        for parameter in self.model.getListOfParameters():
            if parameter.isSetValue():
                self.constants[parameter.getId()] = parameter.getValue()
        for compartment in self.model.getListOfCompartments():
            if compartment.getSpatialDimensions() == 0:
                self.constants[compartment.getId()] = 1.0
            elif compartment.isSetSize():
                self.constants[compartment.getId()] = compartment.getSize()
        for species in self.model.getListOfSpecies():
            if species.isSetConversionFactor():
                raise self.refuse(species, f"the conversion factor of {species.getId()} is not supported", "none")
            if self.model.getCompartment(species.getCompartment()) is None:
                raise self.refuse(species, f"{species.getId()} is in the compartment {species.getCompartment()!r}, "
                                           "which does not exist")  # fmt: skip
            self.species[species.getId()] = _Species(species.getId(), species.getCompartment(), 0, species)
        for symbol, assignment in self.initial.items():
            if symbol not in self.species:
                self.constants[symbol] = self.at_start(assignment, assignment.getMath(), f"the value of {symbol}")
        for one in self.species.values():
            self.start(one)

    def start(self, one: _Species) -> None:
        """The count of a species at the start, or the value of one that reactions do not change."""
        element, id_ = one.element, one.id
        if id_ in self.assigned:
            return
        if id_ in self.initial:
            assignment = self.initial[id_]
            value = self.at_start(assignment, assignment.getMath(), f"the start of {id_}")
            amount = value if element.getHasOnlySubstanceUnits() else value * self.size(one)
        elif element.isSetInitialAmount():
            amount = element.getInitialAmount()
        elif element.isSetInitialConcentration():
            amount = element.getInitialConcentration() * self.size(one)
        else:
            raise self.refuse(element, f"the species {id_} has no start", "initialAmount or initialConcentration")
        if (element.getBoundaryCondition() or element.getConstant()) and id_ not in self.sets:
            one.value = number(amount if element.getHasOnlySubstanceUnits() else amount / self.size(one))
            return
        if not -0.5 < amount <= MAX_COUNT or abs(amount - round(amount)) > 1e-9 * max(1.0, abs(amount)):
            raise self.refuse(element, f"{id_} starts with {amount:.17g}", f"a whole number from 0 to {MAX_COUNT}")
        one.count = round(amount)

    def size(self, one: _Species) -> float:
        """The size of the compartment of a species, which its concentration is based on."""
        if one.compartment in self.assigned:
            raise self.refuse(one.element, f"the size of {one.compartment} follows a rule", "a size that stays")
        size = self.constants.get(one.compartment)
        if size is None or not 0 < size < float("inf"):
            found = "no size" if size is None else f"the size {size}"
            raise self.refuse(one.element, f"{one.compartment}, where {one.id} is, has {found}", "a positive number")
        return size

    def at_start(self, element: Any, tree: Any, what: str) -> float:
        """The value of a formula in the starting state."""
        expression = self.formula(element, tree, {}, starting=True)
        counts = {name: float(self.species[name].count) for name in names(expression)}
        value = evaluate(expression, counts)
        if not abs(value) < float("inf"):
            raise self.refuse(element, f"{what} comes out as {value}", "a finite number")
        return value

    # formulas

    def formula(
        self, element: Any, tree: Any, local: dict[str, float], *, starting: bool = False, timed: bool = False
    ) -> Expression:
        """A formula over counts, by species, and over TIME if it is `timed`."""

        def lookup(symbol: str) -> Expression:
            if symbol in local:
                return number(local[symbol])
            return self.symbol(element, symbol, starting)

        if not self.opened:
            self.formulas.work = 0
            self.formulas.time = name(TIME) if timed else None
        try:
            return self.formulas.read(tree, lookup)
        except MathError as error:
            raise self.refuse(element, str(error)) from error

    def symbol(self, element: Any, symbol: str, starting: bool) -> Expression:
        if starting and symbol in self.initial:
            assignment = self.initial[symbol]
            return self.put_in(symbol, assignment, starting)
        if symbol in self.assigned:
            return self.put_in(symbol, self.assigned[symbol], starting)
        if symbol in self.species:
            one = self.species[symbol]
            if starting:
                self.start(one)
            if one.value is not None:
                return one.value
            count = Expression("name", symbol=symbol)
            return count if one.element.getHasOnlySubstanceUnits() else self.formulas.node(
                "div", count, number(self.size(one))
            )  # fmt: skip
        if symbol in self.constants:
            return number(self.constants[symbol])
        if self.model.getReaction(symbol) is not None:
            raise self.refuse(element, f"the rate of the reaction {symbol} is used in a formula", "the law itself")
        raise self.refuse(element, f"{symbol} has no value", "a parameter, a compartment or a species with a value")

    def put_in(self, symbol: str, rule: Any, starting: bool) -> Expression:
        """What a rule or initial assignment gives a symbol."""
        if (symbol, starting) in self.known:
            return self.known[symbol, starting]
        if symbol in self.opened or len(self.opened) > MAX_RULES:
            chain = " -> ".join([*self.opened[-5:], symbol])
            raise self.refuse(rule, f"the value of {symbol} depends on itself or on too many rules: {chain}")
        self.opened.append(symbol)
        try:
            made = self.formula(rule, rule.getMath(), {}, starting=starting)
        finally:
            self.opened.pop()
        self.known[symbol, starting] = made
        return made

    # reactions

    def reaction(self, reaction: Any) -> list[_Reaction]:
        """The rules of a reaction: one, or two where it is reversible and its law a difference."""
        id_ = reaction.getId()
        if reaction.isSetFast() and reaction.getFast():
            raise self.refuse(reaction, f"the fast reaction {id_} is not supported", "reactions with rates")
        law = reaction.getKineticLaw()
        if law is None or law.getMath() is None:
            raise self.refuse(reaction, f"the reaction {id_} has no rate law", "a <kineticLaw>")
        local: dict[str, float] = {}
        for parameter in [*law.getListOfLocalParameters(), *law.getListOfParameters()]:
            if not parameter.isSetValue():
                raise self.refuse(parameter, f"the parameter {parameter.getId()} of {id_} has no value", "a number")
            local[parameter.getId()] = parameter.getValue()
        rate = self.formula(law, law.getMath(), local)
        consume, produce = self.side(reaction, "Reactant"), self.side(reaction, "Product")
        where = self.where(reaction)
        if not reaction.getReversible() or not subtracts(rate):
            return [_Reaction(consume, produce, rate, where)]
        both = halves(rate, self.formulas)
        if both is None:
            raise self.refuse(
                reaction, f"the reversible reaction {id_} has a law that is no difference of two rates",
                "two reactions, or a law 'forward - backward'",
            )  # fmt: skip
        return [_Reaction(consume, produce, both[0], where), _Reaction(produce, consume, both[1], where)]

    def side(self, reaction: Any, which: str) -> Bag:
        """The objects of the reactants or products; species that reactions do not change are left out."""
        counts: dict[str, int] = {}
        for i in range(getattr(reaction, f"getNum{which}s")()):
            reference = getattr(reaction, f"get{which}")(i)
            id_ = reference.getSpecies()
            if id_ not in self.species:
                raise self.refuse(reference, f"{reaction.getId()} uses the species {id_!r}, which does not exist")
            one = self.species[id_]
            times = self.stoichiometry(reference)
            if one.element.getBoundaryCondition():
                continue
            if one.element.getConstant() or id_ in self.assigned:
                raise self.refuse(reference, f"{reaction.getId()} changes {id_}, which is constant or follows a rule")
            counts[id_] = counts.get(id_, 0) + times
        return bag(counts)

    def stoichiometry(self, reference: Any) -> int:
        id_ = reference.getId()
        if reference.isSetStoichiometryMath():
            value = self.at_start(reference, reference.getStoichiometryMath().getMath(), "a stoichiometry")
        elif id_ and id_ in self.assigned:
            expression = self.put_in(id_, self.assigned[id_], False)
            if expression.op != "number":
                raise self.refuse(reference, f"the stoichiometry {id_} varies", "a whole number")
            value = expression.value
        elif id_ and id_ in self.initial:
            value = self.constants[id_]
        elif reference.isSetStoichiometry():
            value = reference.getStoichiometry()
        else:
            value = 1.0
        if not 0 <= value <= MAX_COUNT or value != round(value):
            raise self.refuse(
                reference, f"the stoichiometry {value:.17g} of {reference.getSpecies()}", "a whole number from 0"
            )
        return round(value)

    # events

    def event(self, event: Any) -> Event:
        """An event, with a label that is still to be found."""
        trigger = event.getTrigger()
        delay = None
        if event.isSetDelay() and event.getDelay().isSetMath():
            delay = self.formula(event.getDelay(), event.getDelay().getMath(), {}, timed=True)
            if delay.op == "number" and not 0 <= delay.value < float("inf"):
                raise self.refuse(event.getDelay(), f"the delay of the event {event.getId()!r} is {delay.value}",
                                  "a number from 0 on")  # fmt: skip
        assignments = []
        for assignment in event.getListOfEventAssignments():
            if assignment.isSetMath():
                one = self.species[assignment.getVariable()]
                if one.id in self.assigned:
                    raise self.refuse(assignment, f"the event {event.getId()!r} sets {one.id}, which follows a rule")
                value = self.formula(assignment, assignment.getMath(), {}, timed=True)
                if not one.element.getHasOnlySubstanceUnits():
                    value = self.formulas.node("mul", value, number(self.size(one)))
                assignments.append((one.id, value))
        early = event.getUseValuesFromTriggerTime() if event.isSetUseValuesFromTriggerTime() else True
        condition = self.formula(trigger, trigger.getMath(), {}, timed=True)
        try:
            solve(condition)
        except CompileError as error:
            raise self.refuse(trigger, f"in the trigger of the event {event.getId()!r}, {error}") from error
        return Event(
            "", condition, tuple(assignments),
            trigger.getInitialValue() if trigger.isSetInitialValue() else True,
            trigger.getPersistent() if trigger.isSetPersistent() else True, early, event.getId(), self.where(event),
            delay,
        )  # fmt: skip

    # membranes and rules

    def membranes(self, together: list[list[str]]) -> tuple[list[Cell], dict[str, str]]:
        """The cells, and the label of the membrane of each species; those of one list want to be in one membrane."""
        counts = {s.id: s for s in self.species.values() if s.value is None and s.id not in self.assigned}
        compartments = {c.getId(): c for c in self.model.getListOfCompartments()}
        apart = len(compartments) <= 1 or all(len({counts[o].compartment for o in seen}) == 1 for seen in together)
        if not apart or not compartments:
            label = self.model.getId() or "model"
            content = bag({s.id: s.count for s in counts.values()})
            return [Cell(label, None, content)], dict.fromkeys(counts, label)
        cells = self.tree(compartments)
        place = {cell.label: i for i, cell in enumerate(cells)}
        for one in counts.values():
            i = place[one.compartment]
            cell = cells[i]
            content = bag([*cell.objects, (one.id, one.count)])
            cells[i] = Cell(cell.label, cell.parent, content, where=cell.where)
        return cells, {id_: one.compartment for id_, one in counts.items()}

    def tree(self, compartments: dict[str, Any]) -> list[Cell]:
        """Compartments by what is around them, parents first; several outermost ones get a skin."""
        around = {id_: c.getOutside() if hasattr(c, "getOutside") else "" for id_, c in compartments.items()}
        roots = [id_ for id_ in compartments if around[id_] not in compartments]
        cells: list[Cell] = []
        if len(roots) != 1:
            label = self.model.getId() or "skin"
            while label in compartments:
                label += "_"
            cells.append(Cell(label))
        skin = 0 if cells else None
        place: dict[str, int] = {}
        pending = list(compartments)
        while pending:
            ready = [id_ for id_ in pending if id_ in roots or around[id_] in place]
            if not ready:
                raise self.refuse(compartments[pending[0]], f"the compartment {pending[0]} is inside itself")
            for id_ in ready:
                place[id_] = len(cells)
                parent = skin if id_ in roots else place[around[id_]]
                cells.append(Cell(id_, parent, where=self.where(compartments[id_])))
            pending = [id_ for id_ in pending if id_ not in place]
        return cells

    def rule(self, reaction: _Reaction, home: dict[str, str], skin: str) -> Rule:
        label = next((home[o] for o in _seen(reaction)), skin)
        rate = mass_action(reaction.law, reaction.consume)
        return Rule(label, reaction.consume, reaction.produce, rate=reaction.law if rate is None else rate,
                    where=reaction.where)  # fmt: skip


def _seen(reaction: _Reaction) -> list[str]:
    """The species that a reaction has to do with."""
    return [*dict(reaction.consume), *dict(reaction.produce), *names(reaction.law)]


def _looked_at(event: Event) -> list[str]:
    """The species that an event has to do with."""
    formulas = [event.trigger, *(value for _, value in event.assignments), *([event.delay] if event.delay else [])]
    return [*dict(event.assignments), *(n for f in formulas for n in names(f) if n != TIME)]
