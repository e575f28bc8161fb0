"""`echoc trees`: rooted trees, which are the shapes of membrane structures, and the order of Runge-Kutta methods."""

import sys
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echoc.cli.console import DebugOption, JsonOption, print_json, progress_bar, verb

if TYPE_CHECKING:
    from echoc.membranes.trees.levels import Tree
    from echoc.membranes.trees.tableau import OrderReport

LIST_LIMIT = 1_000_000
INPUT_LIMIT = 16 << 20
SHOWN_NODES = 1000
JSON_NODES = 10_000_000


class Form(StrEnum):
    """How trees are written."""

    levels = "levels"
    brackets = "brackets"
    parents = "parents"


app = typer.Typer(
    help="Count, list and compare rooted trees; find the order of Runge-Kutta methods and their modified equations.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

NodesArgument = Annotated[int, typer.Argument(min=0, metavar="N", help="Nodes of a tree: membranes, with the skin.")]
TreeArgument = Annotated[
    str,
    typer.Argument(
        metavar="TREE",
        help="Brackets \"[[]'2[]'3]'1\", levels 1,2,2 or parents -1,0,0; - reads standard input.",
    ),
]
FormOption = Annotated[Form, typer.Option("--form", help="How trees are written.")]
TableauArgument = Annotated[
    Path, typer.Argument(metavar="TABLEAU.json", help='Object with A, b, and perhaps c, b_hat: texts such as "1/2".')
]

# A parent array begins with a minus sign.
WITH_TREE = {"ignore_unknown_options": True}


@app.command("count")
@verb
def count_command(nodes: NodesArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Count the rooted trees of N nodes (A000081), exactly."""
    from echoc.membranes.trees.counting import count

    with progress_bar(enabled=not as_json) as progress:
        found = count(nodes, progress)
    _answer({"nodes": nodes, "count": found}, [str(found)], as_json)


@app.command("list")
@verb
def list_command(
    nodes: NodesArgument,
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="K", help="Only the first K.")] = None,
    form: FormOption = Form.levels,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the rooted trees of N nodes in order: from the path down to the star."""
    from echoc.membranes.trees.counting import COUNT_LIMIT, count
    from echoc.membranes.trees.levels import TreeError, trees

    if (limit is None or limit > LIST_LIMIT) and (nodes > COUNT_LIMIT or count(nodes) > LIST_LIMIT):
        raise TreeError(f"more than {LIST_LIMIT} trees have {nodes} nodes; list the first ones with --limit K")
    found = islice(trees(nodes), limit)
    if as_json:
        if limit is not None and limit * nodes > JSON_NODES and nodes > SHOWN_NODES:
            raise TreeError(f"{limit} trees of {nodes} nodes are too long a document; leave --json out")
        print_json({"nodes": nodes, "trees": [_plain(tree, form) for tree in found]})
        return
    for tree in found:
        sys.stdout.write(_written(tree, form) + "\n")


@app.command("rank", context_settings=WITH_TREE)
@verb
def rank_command(tree: TreeArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Say the position of a tree, counted from 0, among all trees of its size; labels are left aside."""
    from echoc.membranes.trees.counting import rank

    parsed = _read_tree(tree)
    found = rank(parsed)
    _answer({"nodes": len(parsed), "rank": found, "levels": list(parsed)}, [str(found)], as_json)


@app.command("unrank")
@verb
def unrank_command(
    nodes: NodesArgument,
    position: Annotated[int, typer.Argument(min=0, metavar="K", help="A position, counted from 0.")],
    form: FormOption = Form.levels,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the tree of N nodes at position K, without listing those before it."""
    from echoc.membranes.trees.counting import unrank

    with progress_bar(enabled=not as_json) as progress:
        found = unrank(nodes, position, progress)
    report = {"nodes": nodes, "rank": position, "tree": _plain(found, form)}
    _answer(report, [_written(found, form)], as_json)


@app.command("random")
@verb
def random_command(
    nodes: NodesArgument,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal trees.")] = 0,
    form: FormOption = Form.levels,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw one of the trees of N nodes, all equally likely."""
    from echoc.membranes.trees.counting import random_tree

    with progress_bar(enabled=not as_json) as progress:
        found = random_tree(nodes, seed, progress)
    _answer({"nodes": nodes, "seed": seed, "tree": _plain(found, form)}, [_written(found, form)], as_json)


@app.command("show", context_settings=WITH_TREE)
@verb
def show_command(tree: TreeArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show the canonical form of a tree, its symmetry, density and labellings, and its order condition."""
    from echoc.membranes.trees.conditions import order_condition
    from echoc.membranes.trees.forms import to_brackets
    from echoc.membranes.trees.invariants import density, monotonic_labellings, symmetry
    from echoc.membranes.trees.levels import TreeError

    parsed = _read_tree(tree)
    if len(parsed) > SHOWN_NODES:
        raise TreeError(f"the numbers of a tree of {len(parsed)} nodes fill pages; at most {SHOWN_NODES} nodes")
    report = {
        "levels": list(parsed),
        "brackets": to_brackets(parsed),
        "order": len(parsed),
        "symmetry": symmetry(parsed),
        "density": density(parsed),
        "monotonic_labellings": monotonic_labellings(parsed),
        "condition": str(order_condition(parsed)),
    }
    shown = {**report, "levels": _written(parsed, Form.levels)}
    lines = [f"{name.replace('_', ' '):<21} {value}" for name, value in shown.items()]
    _answer(report, lines, as_json)


@app.command("conditions")
@verb
def conditions_command(
    order: Annotated[int, typer.Argument(min=1, metavar="P", help="Highest order.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the order conditions of Runge-Kutta methods up to order P, one for each tree."""
    from echoc.membranes.trees.conditions import order_conditions
    from echoc.membranes.trees.forms import to_brackets

    found = order_conditions(order)
    if as_json:
        rows = [{"levels": list(c.tree), "formula": c.formula, "value": str(c.value)} for c in found]
        print_json({"order": order, "conditions": rows})
        return
    for condition in found:
        sys.stdout.write(f"{condition}  {to_brackets(condition.tree)}\n")


@app.command("order")
@verb
def order_command(
    tableau: TableauArgument,
    max_order: Annotated[int, typer.Option("--max-order", min=1, help="Check conditions up to this order.")] = 10,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0.0, help="Accept float coefficients, conditions to within this.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the exact order of a Runge-Kutta method, and the conditions of the next order that fail."""
    from echoc.membranes.trees.tableau import exact_order, is_symplectic, read_tableau

    method = read_tableau(tableau, tolerance=tolerance)
    with progress_bar(enabled=not as_json) as progress:
        main = exact_order(method, limit=max_order, tolerance=tolerance, progress=progress)
        second = None
        if method.b_hat is not None:
            embedded = method.embedded()
            second = exact_order(embedded, limit=max_order, tolerance=tolerance, progress=progress)
    symplectic = is_symplectic(method, tolerance=tolerance)
    report: dict[str, Any] = {
        "name": method.name,
        "stages": method.stages,
        "explicit": method.explicit,
        "symplectic": symplectic,
        **_order_json(main),
        "embedded": None if second is None else _order_json(second),
    }
    kind = ("explicit" if method.explicit else "implicit") + (", symplectic" if symplectic else "")
    stages = "stage" if method.stages == 1 else "stages"
    lines = [
        f"{method.name + ': ' if method.name else ''}{method.stages} {stages}, {kind}",
        *_order_lines("order", main),
    ]
    if second is not None:
        lines += _order_lines("embedded order", second)
    _answer(report, lines, as_json)


@app.command("modified")
@verb
def modified_command(
    tableau: TableauArgument,
    order: Annotated[int, typer.Option("--order", min=1, help="Highest order of the coefficients.")] = 4,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the modified equation of a Runge-Kutta method: the field whose exact flow the method follows."""
    from echoc.membranes.trees.bseries import modified_equation, of_method
    from echoc.membranes.trees.forms import to_brackets
    from echoc.membranes.trees.invariants import symmetry
    from echoc.membranes.trees.numbers import spell
    from echoc.membranes.trees.tableau import read_tableau

    method = read_tableau(tableau)
    with progress_bar(enabled=not as_json) as progress:
        field = modified_equation(of_method(method, order, progress), progress)
    rows = [(tree, value, symmetry(tree)) for tree, value in field.coefficients.items() if tree]
    report = {
        "name": method.name,
        "order": order,
        "coefficients": [
            {"levels": list(tree), "coefficient": spell(value), "symmetry": sigma} for tree, value, sigma in rows
        ],
    }
    lines = [
        f"h^{len(tree) - 1}  {spell(value):>12} / {sigma:<6} F({to_brackets(tree)})"
        for tree, value, sigma in rows
        if value
    ]
    _answer(report, lines, as_json)


def _order_json(report: "OrderReport") -> dict[str, Any]:
    from echoc.membranes.trees.numbers import spell

    failures = [{"levels": list(f.tree), "found": spell(f.found), "wanted": str(f.wanted)} for f in report.failures]
    return {"order": report.order, "exact": report.exact, "failures": failures}


def _order_lines(title: str, report: "OrderReport") -> list[str]:
    if not report.exact:
        return [f"{title} at least {report.order}: every condition up to it holds (look further with --max-order)"]
    failing = len(report.failures)
    kind = "condition fails" if failing == 1 else "conditions fail"
    return [
        f"{title} {report.order}; {failing} {kind} at order {report.order + 1}:",
        *(f"  {failure}" for failure in report.failures),
    ]


def _read_tree(text: str) -> "Tree":
    from echoc.membranes.trees.forms import parse
    from echoc.membranes.trees.levels import TreeError

    if text == "-":
        text = sys.stdin.read(INPUT_LIMIT + 1)
        if len(text) > INPUT_LIMIT:
            raise TreeError(f"more than {INPUT_LIMIT} letters on standard input; a tree is shorter")
    return parse(text)


def _written(tree: "Tree", form: Form) -> str:
    from echoc.membranes.trees import forms

    return forms.write(tree, forms.Form(form.value))


def _plain(tree: "Tree", form: Form) -> Any:
    """The same for JSON: brackets are text, levels and parents are numbers."""
    written = _written(tree, form)
    return written if form is Form.brackets else [int(number) for number in written.split(",")]


def _answer(report: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        sys.stdout.write("\n".join(lines) + "\n")
