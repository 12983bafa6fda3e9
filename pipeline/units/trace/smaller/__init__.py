"""Smaller forwards: they confirm what the rules found, and show which numbers must shrink too."""
