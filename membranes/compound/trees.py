"""Reservoirs from parameters: one layer, a stack, or a tree of layers whose leaves hear channels of the input.

    reservoir = { units = 200, inputs = 1, readout = "ear.npz" }
    reservoir = { units = [100, 100, 100], inputs = 1, ... }
    reservoir = { inputs = 2, readout = "ear.npz", tree = { units = 60, children = [
        { units = 40, channels = [0, 1] }, { units = 40, channels = [1, 1], leak = 0.3 } ] } }

A node of a tree hears `channels` (first, count; a leaf without them hears all) and the states of its children.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .contents import load_readout
from .topology import MAX_DEPTH, Membrane

if TYPE_CHECKING:
    from echoc.membranes.reservoirs import Reservoir
    from echoc.membranes.reservoirs.layer import Layer

LAYER = ("spectral_radius", "leak", "connectivity", "input_scaling", "inter_scaling", "bias", "distribution", "pattern")
WHOLE = ("units", "tree", "inputs", "seed", "squares", "input_to_readout", "readout")
MAX_LAYERS, MAX_UNITS = 1000, 1 << 14


def load_reservoir(given: Mapping[str, Any], membrane: Membrane) -> Reservoir:
    """The reservoir of a table of parameters, with the readout that it names. Raises TopologyError, ReservoirError."""
    from echoc.membranes.reservoirs import ESN, DeepESN

    place = membrane.place
    unknown = [key for key in given if key not in (*WHOLE, *LAYER)]
    if unknown:
        raise place.error(f"reservoir has the key {unknown[0]!r}", f"it has {', '.join((*WHOLE, *LAYER))}")
    if ("units" in given) == ("tree" in given):
        raise place.error(
            "a reservoir of " + ("units and a tree" if "tree" in given else "no size"), "wanted units, or tree"
        )
    units = given.get("units")
    sizes = units if isinstance(units, list) else [units]
    if units is not None and any(
        isinstance(u, bool) or not isinstance(u, int) or not 1 <= u <= MAX_UNITS for u in sizes
    ):
        raise place.error(f"units is {units!r:.80}", f"wanted 1 to {MAX_UNITS}, or a list of such numbers")
    options = {key: given[key] for key in given if key not in ("tree", "units", "readout")}
    if "tree" in given:
        model = tree_reservoir(given["tree"], membrane, **options)
    elif isinstance(units, list):
        model = DeepESN(units, **options)
    else:
        if "inter_scaling" in options:
            raise place.error("inter_scaling for a single layer", "wanted a list of units, or a tree")
        model = ESN(int(sizes[0] or 0), **options)
    if "readout" in given:
        model.readout = load_readout(membrane, given["readout"], model.features)
    return model


def tree_reservoir(tree: Any, membrane: Membrane, *, inputs: int = 1, seed: int = 0, squares: str = "none",
                   input_to_readout: bool = True, **defaults: Any) -> Reservoir:  # fmt: skip
    """A deep tree of layers, in post-order, each driven by its channels and its children's states.

    Every layer draws from the seed and its own place in the tree, so that a change in one leaves the others alone.
    """
    from echoc.membranes.reservoirs import Reservoir
    from echoc.membranes.reservoirs.signals import count

    count(inputs, "the number of inputs", 0)
    count(seed, "the seed", 0, 1 << 62)
    layers: list[Layer] = []
    _grow(tree, (), layers, membrane, inputs, seed, defaults)
    return Reservoir(layers, inputs=inputs, squares=squares, input_to_readout=input_to_readout)


def _grow(node: Any, path: tuple[int, ...], layers: list[Layer], membrane: Membrane, inputs: int, seed: int,
          defaults: Mapping[str, Any]) -> int:  # fmt: skip
    """Adds a node's subtree; returns the number of its layer."""
    from echoc.membranes.reservoirs.layer import random_layer
    from echoc.membranes.reservoirs.signals import count, number

    place, at = membrane.place, "tree" + "".join(f".children[{i}]" for i in path)
    known = ("units", "children", "channels", *LAYER)
    if not isinstance(node, Mapping) or any(key not in known for key in node):
        raise place.error(f"{at} is {node!r:.80}", f"wanted a table of {', '.join(known)}")
    children = node.get("children", [])
    if not isinstance(children, list | tuple) or len(path) >= MAX_DEPTH:
        raise place.error(f"{at} has the children {children!r:.80}", f"wanted a list, at most {MAX_DEPTH} deep")
    inner = tuple(
        _grow(child, (*path, i), layers, membrane, inputs, seed, defaults) for i, child in enumerate(children)
    )
    if len(layers) >= MAX_LAYERS:
        raise place.error(f"a tree of more than {MAX_LAYERS} layers", "take fewer")
    channels = node.get("channels", [0, 0] if inner else [0, inputs])
    if not isinstance(channels, list | tuple) or len(channels) != 2:
        raise place.error(f"{at} hears the channels {channels!r:.80}", "wanted [first, count]")
    first, heard = (count(c, f"the channels of {at}", 0) for c in channels)
    values = {
        "spectral_radius": 0.9, "leak": 1.0, "connectivity": 0.1, "input_scaling": 1.0, "inter_scaling": 1.0,
        "bias": 0.0, "distribution": "uniform", "pattern": "balanced", **defaults,
        **{key: node[key] for key in LAYER if key in node},
    }  # fmt: skip
    below = sum(layers[c].units for c in inner)
    outer, between = number(values.pop("input_scaling"), "the input scaling", -1e6, 1e6), values.pop("inter_scaling")
    scaling = [outer] * heard + [number(between, "the inter scaling", -1e6, 1e6) / max(below, 1) ** 0.5] * below
    digest = hashlib.sha256(repr(path).encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    layers.append(
        random_layer(
            count(node.get("units"), f"the units of {at}", 1, MAX_UNITS), heard + below, 0,
            input_scaling=scaling or 1.0, feedback_scaling=1.0, input_connectivity=1.0, rng=rng,
            channels=(first, heard), children=inner, **values,
        )
    )  # fmt: skip
    return len(layers) - 1
