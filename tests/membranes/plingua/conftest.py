"""Lies here so that the tests of this folder can import the examples beside it."""
