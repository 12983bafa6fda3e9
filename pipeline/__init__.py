"""Machinery: would be the same if every method and every model were replaced."""
