"""Compound systems: membranes with P systems, reservoirs, models or other membranes inside, and wires between ports.

    artifact = compile("topology.toml")                      # or a Membrane made in Python
    run = CompoundProgram(artifact).create(seed=1)           # echoc.runtime.compound
    outputs = run.step({"signal": [0.3]})

Nothing crosses a boundary but through a declared port: everything else is a compile error. That is a fact of data flow;
all membranes run in one process, so it is no protection against hostile contents.
"""

from .compiling import compile
from .errors import TopologyError
from .reading import is_topology, read
from .topology import Membrane, Port, PortType, Wire

__all__ = ["Membrane", "Port", "PortType", "TopologyError", "Wire", "compile", "is_topology", "read"]
