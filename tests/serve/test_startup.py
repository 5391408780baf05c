from __future__ import annotations

import traceback

import pytest

from hubctl.errors import ConflictError, HubctlError, InputError
from serve.startup import hints_in_tracebacks, start_fault


def raised(hint: str | None) -> str:
    """What Ray keeps of a constructor that failed, here over another fault."""
    try:
        with hints_in_tracebacks():
            raise InputError("engine: no device 'warp'", hint=hint) from ConflictError("no room")
    except HubctlError as error:
        text = "".join(traceback.format_exception(error))
    return f"The deployment failed to start 3 times in a row. Error:\n{text}"


@pytest.mark.parametrize("hint", ["try auto, cpu or cuda:0", None])
def test_a_fault_comes_back_as_it_was_raised(hint: str | None) -> None:
    fault = start_fault([("engine-a", "Traceback ...\nKeyError: 'x'"), ("engine-b", raised(hint))])
    assert type(fault) is InputError
    assert fault.message == "engine-b cannot start: engine: no device 'warp'"
    assert fault.hint == hint


def test_a_bug_is_no_fault_of_the_user() -> None:
    assert start_fault([("engine-a", "Traceback ...\nRuntimeError: shapes differ")]) is None
