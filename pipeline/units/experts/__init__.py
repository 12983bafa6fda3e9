"""Experts of a mixture as units: found by shape, proved by trial, masked by their router."""
