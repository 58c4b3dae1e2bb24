"""Weights on grids of integer codes."""
