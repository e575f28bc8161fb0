"""The intermediate representation: typed nodes, one op table, membranes, a text form, a verifier, rewriting."""

from .membrane import Membrane, Port, Program, Rule, State
from .node import Node, make, topological
from .types import DType, Poly, StateType, TensorType, Type, symbol

__all__ = [
    "DType",
    "Membrane",
    "Node",
    "Poly",
    "Port",
    "Program",
    "Rule",
    "State",
    "StateType",
    "TensorType",
    "Type",
    "make",
    "symbol",
    "topological",
]
