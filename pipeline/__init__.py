"""Machinery: would be the same if every method and every model were replaced."""

__version__ = "0.1.0"
