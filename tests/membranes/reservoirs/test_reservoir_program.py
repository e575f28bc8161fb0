"""Reservoirs as programs: nested membranes, the interpreter, artifacts that step without the compiler."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import echoc
from echoc.compiler.ir import Membrane, Node, Port, Program, Rule, make
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.ir.text import parse, show
from echoc.compiler.targets.reservoir_artifact import compile_reservoir
from echoc.errors import CompileError, IRError
from echoc.membranes.reservoirs import ESN, DeepESN, Layer, Reservoir, ReservoirError
from echoc.membranes.reservoirs.nesting import flatten

RNG = np.random.default_rng(2)
U = RNG.uniform(-0.5, 0.5, (400, 1))
Y = np.roll(U, 2, axis=0) + 0.1


def fitted(model: Reservoir) -> Reservoir:
    return model.fit(U if model.inputs else np.zeros((400, 0)), Y, washout=50)


def interpret(model: Reservoir, u: np.ndarray) -> np.ndarray:
    """Instant by instant, by the op table's meanings."""
    nested, weights = model.program()
    program = flatten(nested)
    (rule,) = program.skin.rules
    states = {s.name: np.zeros(s.type.shape) for s in program.skin.states}
    rows = []
    for row in u:
        outputs, states = run_rule(program.skin, rule, {"u": row} if model.inputs else {}, weights.__getitem__, states)
        rows.append(next(iter(outputs.values())))
    return np.array(rows)


MODELS = {
    "plain": lambda: ESN(25, connectivity=0.4, bias=0.1, leak=0.7),
    "fitted": lambda: fitted(ESN(25, connectivity=0.4, bias=0.1, leak=0.7, ridge=1e-5)),
    "deep": lambda: fitted(DeepESN([12, 10, 8], leak=[1.0, 0.5, 0.7], connectivity=0.5, squares="half", ridge=1e-5)),
    "feedback": lambda: fitted(
        ESN(20, connectivity=0.4, feedback=1, squares="all", input_to_readout=False, ridge=1e-3)
    ),
    "generator": lambda: fitted(DeepESN([12, 9], 0, connectivity=0.5, feedback=1, bias=0.3, ridge=1e-3)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_interpreter_artifact_and_model_agree(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    u = U[:60] if model.inputs else np.zeros((60, 0))
    wanted = model.states(u) if kind == "plain" else model.predict(u)
    np.testing.assert_allclose(interpret(model, u), wanted, atol=1e-10)
    model.compile(output=tmp_path / "reservoir.echo")
    program = echoc.load(tmp_path / "reservoir.echo")
    port = "x" if kind == "plain" else "y"
    found = [program.step({"u": part})[port] for part in (u[:1], u[1:40], u[40:])]
    np.testing.assert_allclose(np.vstack(found), wanted, atol=1e-10)


def test_the_artifact_of_a_short_reservoir_is_f32(tmp_path: Path) -> None:
    model = ESN(25, connectivity=0.4, bias=0.1)
    model.compile(tmp_path / "reservoir.echo", dtype="f32")
    found = echoc.load(tmp_path / "reservoir.echo").step({"u": U[:50].astype(np.float32)})["x"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.states(U[:50]), atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_programs_print_and_parse(kind: str) -> None:
    program, _ = MODELS[kind]().program()
    assert show(parse(show(program))) == show(program)


def test_a_deep_network_nests_its_layers() -> None:
    program, weights = MODELS["deep"]().program()
    assert [m.name for m in program.skin.walk()] == ["reservoir", "layer2", "layer1", "layer0"]
    assert [len(m.states) for m in program.skin.walk()] == [0, 1, 1, 1]
    assert weights["layer1.from.layer0"].shape == (10, 12)


def test_layers_that_share_a_driver_are_no_tree() -> None:
    low = Layer(np.eye(2), np.ones((2, 2)), np.zeros((2, 0)), 1.0)
    high = Layer(np.eye(2), np.ones((2, 3)), np.zeros((2, 0)), 1.0, (0, 0), (0,))
    model = Reservoir([low, high, high])
    assert model.states(U[:5]).shape == (5, 6)
    with pytest.raises(ReservoirError, match="post-order"):
        model.program()


def test_feedback_without_a_readout_is_no_program() -> None:
    with pytest.raises(ReservoirError, match="call fit first"):
        ESN(10, feedback=1).program()


def changed(program: Program, old: str, new: str) -> Program:
    """The flat program with an op replaced."""

    def visit(rule: Rule) -> Rule:
        done: dict[Node, Node] = {}
        for node in rule.order:
            inputs = tuple(done[i] for i in node.inputs)
            op = new if node.op == old else node.op
            done[node] = make(op, *inputs, **dict(node.attrs))
        return rule.map(lambda n: done[n])

    return program.map_rules(visit)


def test_rules_of_another_form_are_refused(tmp_path: Path) -> None:
    nested, weights = MODELS["fitted"]().program()
    flat = flatten(nested)
    options = {"output": tmp_path / "x.echo"}
    with pytest.raises(CompileError, match="wanted one rule"):
        compile_reservoir(nested, weights.__getitem__, **options)
    with pytest.raises(CompileError, match=r"changes the state 'layer0\.x'"):
        compile_reservoir(changed(flat, "tanh", "exp"), weights.__getitem__, **options)
    (rule,) = flat.skin.rules
    ((name, y),) = rule.outputs
    twice = replace(rule, outputs=((name, make("add", y, y)),))
    with pytest.raises(CompileError, match="neither the states"):
        compile_reservoir(Program(replace(flat.skin, rules=(twice,))), weights.__getitem__, **options)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    nested, weights = MODELS["fitted"]().program()
    for value in (np.zeros((3, 3)), np.full((1, 27), np.nan)):
        with pytest.raises(CompileError, match="the weight 'readout'"):
            compile_reservoir(flatten(nested), (weights | {"readout": value}).__getitem__, output=tmp_path / "x.echo")


def membrane(name: str, ports: list[tuple[str, str]], outputs: dict[str, str], *children: Membrane) -> Membrane:
    """A membrane that passes vectors of two numbers on; `outputs` name the in port that each out port gets."""
    nodes = {n: make("port", name=n, shape=(2,), dtype="f64") for n, d in ports if d == "in"}
    some = make("port", name="any", shape=(2,), dtype="f64")
    rule = Rule("step", tuple((out, nodes[source]) for out, source in outputs.items()))
    return Membrane(name, (), tuple(Port(n, d, some.tensor) for n, d in ports), (rule,), children)


def test_values_go_down_and_up_through_boundaries() -> None:
    child = membrane("c", [("p", "in"), ("q", "out")], {"q": "p"})
    skin = membrane("s", [("u", "in"), ("c.p", "out"), ("c.q", "in"), ("y", "out")], {"c.p": "u", "y": "c.q"}, child)
    flat = flatten(Program(skin))
    assert [p.name for p in flat.skin.ports] == ["u", "y"]
    outputs, _ = run_rule(flat.skin, flat.skin.rules[0], {"u": np.array([1.0, 2.0])})
    np.testing.assert_array_equal(outputs["y"], [1.0, 2.0])


def test_circles_and_loose_ports_are_refused() -> None:
    child = membrane("c", [("p", "in"), ("q", "out")], {"q": "p"})
    circle = membrane("s", [("c.p", "out"), ("c.q", "in"), ("y", "out")], {"c.p": "c.q", "y": "c.q"}, child)
    with pytest.raises(IRError, match="depends on itself"):
        flatten(Program(circle))
    loose = membrane("s", [("c.q", "in"), ("y", "out")], {"y": "c.q"}, child)
    with pytest.raises(IRError, match=r"gives nothing to the out port 'c\.p'"):
        flatten(Program(loose))
    deep = membrane("c", [("p", "in")], {})
    for _ in range(150):
        deep = replace(membrane("c", [("p", "in")], {}), children=(deep,))
    with pytest.raises(IRError, match="nest deeper"):
        flatten(Program(deep))
