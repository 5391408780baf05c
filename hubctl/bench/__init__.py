"""Measurements of the hub's side, each beside the plain way to do the same, in one run."""
