"""Unit tests of the server run without Ray: importing it here is an error."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`import ray` raises ImportError; only tests/e2e starts Ray."""
    monkeypatch.setitem(sys.modules, "ray", None)
