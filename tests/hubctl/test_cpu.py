from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from hubctl.cpu import CPU_ENVIRONMENT
from hubctl.settings import child_environment

_FAULTS = """
import ctypes, resource, sys
from hubctl.cpu import tune_cpu
if "tune" in sys.argv:
    tune_cpu()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
def forward():
    memory = ctypes.c_void_p(libc.malloc(64 << 20))
    libc.memset(memory, 1, 64 << 20)
    libc.free(memory)
forward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
forward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(*arguments: str, **environment: str) -> int:
    """Of taking and freeing 64 MiB, the second time; pages have 4 KiB or more."""
    run = [sys.executable, "-c", _FAULTS, *arguments]
    done = subprocess.run(
        run, env=child_environment(**environment), check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_take_the_memory_that_was_there() -> None:
    plain = _page_faults(**dict.fromkeys(CPU_ENVIRONMENT, ""))
    assert plain > 500
    assert _page_faults("tune", **dict.fromkeys(CPU_ENVIRONMENT, "")) < 50  # in the process itself
    assert _page_faults(**CPU_ENVIRONMENT) < 50  # in one that starts with the environment
