"""Adapters from libraries to operations: one flat module each, listed in `registry`."""
