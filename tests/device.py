"""Where tests compute: on the CPU, or with `HUBCTL_TEST_DEVICE=cuda` on a GPU.

A GPU is hidden from the tests unless they are asked for it: their figures are of float32 on a CPU, and what
a test leaves to `auto` would become half precision. On a GPU run those that know of it:

    HUBCTL_TEST_DEVICE=cuda python -m pytest tests/serve/engine
"""

from __future__ import annotations

import os

DEVICE = os.environ.get("HUBCTL_TEST_DEVICE", "cpu")
