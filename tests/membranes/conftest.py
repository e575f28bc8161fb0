"""Lies here so that tests of every folder below can import the helpers beside it."""
