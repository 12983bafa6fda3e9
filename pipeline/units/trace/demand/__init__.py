"""Forwards on the meta device that have numbers for code that reads them."""
