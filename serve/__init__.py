"""Adapters over one base: the engine, its HTTP routes, and its deployments."""
