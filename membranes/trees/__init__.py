"""Rooted trees: the shapes of membrane structures, and the index set of B-series.

A tree is its canonical level sequence (`levels.py`), a plain tuple: two structures are isomorphic when these are equal.
Everything here is exact: integers, rationals, and numbers a + b sqrt(d).
"""
