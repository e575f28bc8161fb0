"""Reservoir computing: echo state networks, deep and tree-structured ones, their readouts and their programs."""

from .errors import ReadoutWarning, ReservoirError
from .layer import Layer
from .model import ESN, DeepESN, Reservoir
from .readout import RLS, Fit, RidgeFactor
from .tree import Tree, TreeESN
from .weights import spectral_radius

__all__ = [
    "ESN",
    "RLS",
    "DeepESN",
    "Fit",
    "Layer",
    "ReadoutWarning",
    "Reservoir",
    "ReservoirError",
    "RidgeFactor",
    "Tree",
    "TreeESN",
    "spectral_radius",
]
