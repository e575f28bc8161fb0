"""Tree echo state networks: reservoirs on trees; a node's state comes from its label and its children's states."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine
from .errors import ReservoirError
from .layer import Layer, random_layer
from .model import Reservoir
from .readout import Fit, RidgeFactor
from .signals import as_series, count, number

if TYPE_CHECKING:
    from echoc import Artifact
    from echoc.compiler.ir import Program

Array = NDArray[np.float64]
MAPPINGS = ("root", "mean")


class Tree:
    """A rooted tree with a label at every node: a membrane structure with a vector in each membrane.

    Args:
        parents: [nodes], the number of each node's parent; -1 for the root.
        labels: [nodes, channels] (or [nodes]).
    Raises: ReservoirError for what is no tree (no root or several, a circle, a parent that is not there) and for labels
        that are no finite numbers.
    """

    def __init__(self, parents: Sequence[int] | NDArray[np.int64], labels: Any) -> None:
        self.parents = _whole(parents)
        (self.labels,) = as_series(np.asarray(labels), "the labels")
        nodes = len(self.parents)
        if len(self.labels) != nodes:
            raise ReservoirError(f"found {nodes} parents and {len(self.labels)} labels; wanted one label per node")
        if (wrong := np.flatnonzero((self.parents < -1) | (self.parents >= nodes))).size:
            raise ReservoirError(f"node {wrong[0]} has the parent {self.parents[wrong[0]]}; there are {nodes} nodes")
        roots = np.flatnonzero(self.parents < 0)
        if len(roots) != 1:
            raise ReservoirError(f"found {len(roots)} nodes without a parent; wanted one, the root")
        self.root = int(roots[0])
        self.height = self._heights()

    def _heights(self) -> NDArray[np.int64]:
        """0 for leaves, else one more than the highest child."""
        height = np.zeros(len(self.parents), np.int64)
        waiting = np.bincount(self.parents[self.parents >= 0], minlength=len(self.parents))
        ready = np.flatnonzero(waiting == 0).tolist()
        seen = 0
        while ready:
            node = ready.pop()
            seen += 1
            parent = int(self.parents[node])
            if parent >= 0:
                height[parent] = max(height[parent], height[node] + 1)
                waiting[parent] -= 1
                if waiting[parent] == 0:
                    ready.append(parent)
        if seen < len(self.parents):
            raise ReservoirError(f"{len(self.parents) - seen} nodes are in or above a circle of parents; wanted a tree")
        return height

    def post_order(self) -> list[int]:
        """Nodes behind all nodes below them, subtree by subtree."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                children[parent].append(node)
        order, stack = list[int](), [self.root]
        while stack:
            node = stack.pop()
            order.append(node)
            stack += children[node]
        return order[::-1]


class TreeESN:
    """x_l(n) = tanh(W_in [1; x_(l-1)(n)] + sum over children c of W x_l(c)), with the label of n as x_0(n).

    One layer is TreeESN (Gallicchio and Micheli, Neurocomputing 101, 2013), several are Deep Tree ESN (IJCNN 2018). The
    readout sees the states of all layers at the root (`root`) or their mean over the nodes (`mean`).

    Args:
        units: of the layer, or a list with those of each layer.
        inputs: channels of the labels.
        spectral_radius: of W. States of different subtrees forget their leaves where it is below one over the number of
            children.
        Others: as for `ESN`.
    """

    def __init__(
        self,
        units: int | Sequence[int],
        inputs: int = 1,
        *,
        spectral_radius: float = 0.5,
        connectivity: float = 0.2,
        input_scaling: float | Sequence[float] = 1.0,
        inter_scaling: float = 1.0,
        bias: float = 0.0,
        mapping: str = "root",
        distribution: str = "uniform",
        pattern: str = "balanced",
        seed: int = 0,
        ridge: float = 1e-8,
        device: str = "cpu",
        dtype: str = "f64",
    ) -> None:
        sizes: list[Any] = list(units) if isinstance(units, list | tuple) else [units]
        if mapping not in MAPPINGS or not sizes:
            raise ReservoirError(f"found mapping {mapping!r} and units {units!r}; wanted root or mean, and a layer")
        rng = np.random.default_rng(count(seed, "the seed", 0, 1 << 62))
        self.mapping, self.ridge = mapping, number(ridge, "the ridge", 0, 1e30)
        self.inputs = count(inputs, "the number of inputs", 1)
        self.layers: list[Layer] = []
        for i, size in enumerate(sizes):
            below = self.layers[-1].units if i else self.inputs
            self.layers.append(
                random_layer(
                    size, below, 0, spectral_radius=spectral_radius, leak=1.0, connectivity=connectivity,
                    input_scaling=number(inter_scaling, "the inter scaling", -1e6, 1e6) / below**0.5 if i
                    else input_scaling,
                    bias=bias, feedback_scaling=0.0, input_connectivity=1.0, distribution=distribution, rng=rng,
                    pattern=pattern,
                )
            )  # fmt: skip
        self.units = sum(layer.units for layer in self.layers)
        self.engines = [Engine([layer], layer.input.shape[1] - 1, device, dtype) for layer in self.layers]
        self.readout: Array | None = None
        self.last_fit: Fit | None = None

    def states(self, trees: Tree | Sequence[Tree]) -> Any:
        """States [nodes, units] of a tree, layer beside layer; a list of them for a list of trees.

        All nodes of one height, of all trees, are one batch.
        """
        forest = self._forest(trees)
        starts = np.concatenate([[0], np.cumsum([len(t.parents) for t in forest])])
        drive = np.concatenate([t.labels for t in forest])
        height = np.concatenate([t.height for t in forest])
        shifted = [np.where(t.parents < 0, -1, t.parents + s) for t, s in zip(forest, starts, strict=False)]
        parents = np.concatenate(shifted)
        order = np.argsort(height, kind="stable")
        levels = np.split(order, np.cumsum(np.bincount(height))[:-1])
        found = []
        for layer, engine in zip(self.layers, self.engines, strict=True):
            x, sums = np.empty((len(parents), layer.units)), np.zeros((len(parents), layer.units))
            for level in levels:
                nothing = np.zeros((len(level), 1, 0))
                x[level] = engine.run(drive[level][:, None], nothing, sums[level])[1]
                above = level[parents[level] >= 0]
                np.add.at(sums, parents[above], x[above])
            found.append(x)
            drive = x
        parts = np.split(np.hstack(found), starts[1:-1])
        return parts[0] if isinstance(trees, Tree) else parts

    def fit(self, trees: Sequence[Tree], y: Any) -> TreeESN:
        """Learns the readout: `y` [trees, outputs]. Raises ReservoirError; warns ReadoutWarning."""
        forest = self._forest(trees)
        (targets,) = as_series(np.asarray(y), "the targets")
        if len(targets) != len(forest):
            raise ReservoirError(f"found {len(forest)} trees and {len(targets)} targets; wanted one for each")
        factor = RidgeFactor(1 + self.units, targets.shape[1])
        factor.add(self._mapped(forest), targets)
        self.last_fit = factor.solve(self.ridge)
        self.readout = self.last_fit.weights
        return self

    def predict(self, trees: Sequence[Tree]) -> Array:
        """Outputs [trees, outputs]. Raises ReservoirError."""
        if self.readout is None:
            raise ReservoirError("the readout has not been learnt; call fit first")
        return self._mapped(self._forest(trees)) @ self.readout.T

    def reservoir(self, tree: Tree) -> Reservoir:
        """A network of the tree's shape: every node has all layers, driven by the layer below or its label, and by its
        children's states.

        Its input is the labels of all nodes in the tree's order, [nodes * channels]; its states those of the nodes in
        post-order, layer after layer. In its program every node is a membrane.
        """
        self._forest(tree)
        order = tree.post_order()
        place = {node: i for i, node in enumerate(order)}
        children: list[list[int]] = [[] for _ in order]
        for node in order:
            if (parent := int(tree.parents[node])) >= 0:
                children[place[parent]].append(place[node])
        depth, nodes = len(self.layers), list[Layer]()
        for i, node in enumerate(order):
            for level, layer in enumerate(self.layers):
                below = (depth * i + level - 1,) if level else ()
                drive = np.hstack([layer.input, *([layer.recurrent] * len(children[i]))])
                channels = (0, 0) if level else (node * self.inputs, self.inputs)
                still, silent = np.zeros_like(layer.recurrent), np.zeros((layer.units, 0))
                inside = (*below, *(depth * c + level for c in children[i]))
                nodes.append(Layer(still, drive, silent, 1.0, channels, inside))
        made = Reservoir(nodes, inputs=len(order) * self.inputs, input_to_readout=False, membranes=[depth] * len(order))
        if self.readout is not None:
            share, rest = self.readout[:, 1:], len(order) - 1
            over = [share / len(order)] * len(order) if self.mapping == "mean" else [share * 0] * rest + [share]
            made.readout = np.hstack([self.readout[:, :1], *over])
        return made

    def program(self, tree: Tree, dtype: str = "f64") -> tuple[Program, dict[str, NDArray[Any]]]:
        """The tree as nested membranes with a reservoir of all layers in each, and the weights; see `reservoir`."""
        return self.reservoir(tree).program(dtype)

    def compile(self, tree: Tree, output: str | os.PathLike[str], target: str = "cpu", dtype: str = "f64") -> Artifact:
        """Compiles `program`: a step takes `u` [T, nodes * channels], T labellings of the tree. Raises CompileError."""
        return self.reservoir(tree).compile(output, target, dtype)

    def _mapped(self, forest: list[Tree]) -> Array:
        """[1; mapped states] of each tree."""
        states = self.states(forest)
        if self.mapping == "root":
            rows = [s[t.root] for s, t in zip(states, forest, strict=True)]
        else:
            rows = [s.mean(0) for s in states]
        return np.hstack([np.ones((len(rows), 1)), np.stack(rows)])

    def _forest(self, trees: Tree | Sequence[Tree]) -> list[Tree]:
        forest = [trees] if isinstance(trees, Tree) else list(trees)
        if not forest or not all(isinstance(t, Tree) for t in forest):
            raise ReservoirError("wanted a Tree, or a list of one or more")
        for i, tree in enumerate(forest):
            if tree.labels.shape[1] != self.inputs:
                raise ReservoirError(
                    f"the labels of tree {i} have {tree.labels.shape[1]} channels; wanted {self.inputs}"
                )
        return forest


def _whole(parents: Any) -> NDArray[np.int64]:
    try:
        array = np.asarray(parents)
    except ValueError as error:
        raise ReservoirError(f"the parents are no list of numbers: {error}") from None
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ReservoirError(
            f"the parents are {array.dtype} of shape {list(array.shape)}; wanted whole numbers, one for every node"
        )
    return array.astype(np.int64)
