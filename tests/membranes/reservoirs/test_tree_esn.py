"""Tree echo state networks: the recursion, batches of trees, the readout, and trees as nested membranes."""

from pathlib import Path

import numpy as np
import pytest

import echoc
from echoc.compiler.ir.interpret import run_rule
from echoc.compiler.ir.text import parse, show
from echoc.membranes.reservoirs import Layer, Reservoir, ReservoirError, Tree, TreeESN
from echoc.membranes.reservoirs.nesting import flatten

RNG = np.random.default_rng(6)


def random_tree(nodes: int, channels: int = 2) -> Tree:
    """A tree whose nodes stand in no particular order."""
    name = RNG.permutation(nodes)
    parents = np.full(nodes, -1)
    for i in range(1, nodes):
        parents[name[i]] = name[RNG.integers(max(0, i - 4), i)]
    return Tree(parents, RNG.uniform(-1, 1, (nodes, channels)))


def recursive(model: TreeESN, tree: Tree, node: int) -> list[np.ndarray]:
    """The states of a node in every layer, by the definition."""
    below = [recursive(model, tree, c) for c in np.flatnonzero(tree.parents == node)]
    drive, states = tree.labels[node], []
    for i, layer in enumerate(model.layers):
        total = layer.input @ np.r_[1.0, drive] + sum((layer.recurrent @ b[i] for b in below), np.zeros(layer.units))
        drive = np.tanh(total)
        states.append(drive)
    return states


@pytest.mark.parametrize("units", [20, [15, 10, 5]])
def test_states_follow_the_recursion(units: object) -> None:
    model = TreeESN(units, 2, bias=0.2, connectivity=0.5, seed=1)
    forest = [random_tree(n) for n in (1, 9, 30)]
    for tree, states in zip(forest, model.states(forest), strict=True):
        for node in range(len(tree.parents)):
            np.testing.assert_allclose(states[node], np.concatenate(recursive(model, tree, node)), atol=1e-13)
        np.testing.assert_allclose(model.states(tree), states, atol=1e-14)


def test_the_order_of_children_does_not_matter() -> None:
    model = TreeESN(20, 1)
    one = model.states(Tree([-1, 0, 0, 1], [0.1, 0.2, 0.3, 0.4]))
    other = model.states(Tree([-1, 0, 0, 2], [0.1, 0.3, 0.2, 0.4]))
    np.testing.assert_allclose(one[0], other[0], atol=1e-15)


@pytest.mark.parametrize("mapping", ["root", "mean"])
def test_a_readout_learns_what_its_mapping_shows(mapping: str) -> None:
    forest = [random_tree(int(n)) for n in RNG.integers(3, 8, 500)]
    wanted = [t.labels[t.root, 0] if mapping == "root" else t.labels[:, 0].mean() for t in forest]
    model = TreeESN(60, 2, mapping=mapping, input_scaling=0.3, spectral_radius=0.3, ridge=1e-9)
    found = model.fit(forest[:400], wanted[:400]).predict(forest[400:])[:, 0]
    assert np.sqrt(np.mean((found - wanted[400:]) ** 2)) < 0.1 * np.std(wanted)


def test_a_path_as_deep_as_you_like() -> None:
    nodes = 5000
    tree = Tree(np.arange(-1, nodes - 1), RNG.uniform(-1, 1, nodes))
    model = TreeESN(10, connectivity=0.5)
    chain = Reservoir(model.layers).states(tree.labels[::-1])
    np.testing.assert_allclose(model.states(tree)[::-1], chain, atol=1e-13)
    with pytest.raises(ReservoirError, match="nest 5000 deep"):
        model.program(tree)


@pytest.mark.parametrize("units", [12, [8, 5], [6, 4, 3]])
@pytest.mark.parametrize("mapping", ["root", "mean"])
def test_a_tree_is_a_membrane_structure(mapping: str, units: int | list[int], tmp_path: Path) -> None:
    forest = [random_tree(7) for _ in range(60)]
    model = TreeESN(units, 2, connectivity=0.5, mapping=mapping, ridge=1e-3)
    model.fit(forest, RNG.standard_normal((60, 3)))
    tree = forest[0]
    program, weights = model.program(tree)
    membranes = program.skin.walk()
    assert len(membranes) == 8  # the skin and a membrane for each node
    assert {len(m.states) for m in membranes} == {0, len(model.layers)}
    assert show(parse(show(program))) == show(program)
    assert max(len(m.children) for m in membranes) == np.bincount(tree.parents[tree.parents >= 0]).max()
    flat = flatten(program).skin
    states = {s.name: np.zeros(s.type.shape) for s in flat.states}
    outputs, _ = run_rule(flat, flat.rules[0], {"u": tree.labels.reshape(-1)}, weights.__getitem__, states)
    np.testing.assert_allclose(outputs["y"], model.predict([tree])[0], atol=1e-12)
    model.compile(tree, tmp_path / "tree.echo")
    labels = RNG.uniform(-1, 1, (4, 7, 2))
    found = echoc.load(tmp_path / "tree.echo").step({"u": labels.reshape(4, 14)})["y"]
    wanted = model.predict([Tree(tree.parents, row) for row in labels])
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_reservoirs_in_a_tree_follow_their_own_signals(tmp_path: Path) -> None:
    parts = [np.random.default_rng(i).standard_normal((6, 6)) * 0.2 for i in range(3)]
    none, drive = np.zeros((6, 0)), np.random.default_rng(9).uniform(-1, 1, (6, 16))
    layers = [
        Layer(parts[0], drive[:, :2], none, 0.5, (0, 1)),
        Layer(parts[1], drive[:, :3], none, 0.8, (1, 2)),
        Layer(parts[2], drive[:, :13], none, 1.0, (0, 0), (0, 1)),
    ]
    model, u = Reservoir(layers), RNG.uniform(-1, 1, (50, 3))
    left, right = (
        Reservoir(layers[:1]).states(u[:, :1]),
        Reservoir([Layer(parts[1], drive[:, :3], none, 0.8)]).states(u[:, 1:]),
    )
    both = Reservoir([Layer(parts[2], drive[:, :13], none, 1.0)]).states(np.hstack([left, right]))
    np.testing.assert_allclose(model.states(u), np.hstack([left, right, both]), atol=1e-13)
    model.compile(tmp_path / "tree.echo")
    np.testing.assert_allclose(echoc.load(tmp_path / "tree.echo").step({"u": u})["x"], model.states(u), atol=1e-13)


@pytest.mark.parametrize(
    ("parents", "labels", "words"),
    [
        ([-1, 2, 1], [0.0] * 3, "circle"),
        ([1, 0], [0.0] * 2, "0 nodes without a parent"),
        ([-1, -1], [0.0] * 2, "2 nodes without a parent"),
        ([-1, 7], [0.0] * 2, "node 1 has the parent 7"),
        ([-1, -2], [0.0] * 2, "node 1 has the parent -2"),
        ([-1, 0], [0.0] * 3, "one label per node"),
        ([-1, 0], [0.0, np.nan], "nan at step 1"),
        ([], [], "one for every node"),
        ([-1.5], [0.0], "whole numbers"),
        ([[0], [1, 2]], [0.0], "no list of numbers"),
    ],
)
def test_what_is_no_tree_is_refused(parents: list, labels: list, words: str) -> None:
    with pytest.raises(ReservoirError, match=words):
        Tree(parents, labels)


def test_trees_and_options_that_do_not_fit_are_refused() -> None:
    model = TreeESN(10, 2, connectivity=0.5)
    tree = random_tree(4)
    with pytest.raises(ReservoirError, match="call fit first"):
        model.predict([tree])
    with pytest.raises(ReservoirError, match="have 1 channels; wanted 2"):
        model.states(Tree([-1], [0.0]))
    with pytest.raises(ReservoirError, match="2 targets"):
        model.fit([tree], [0.0, 1.0])
    with pytest.raises(ReservoirError, match="wanted a Tree"):
        model.states([])
    with pytest.raises(ReservoirError, match="wanted root or mean"):
        TreeESN(10, mapping="sum")
    with pytest.raises(ReservoirError, match="there are 1"):
        Reservoir(model.layers, membranes=[1, 1])
