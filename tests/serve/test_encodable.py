from __future__ import annotations

import traceback

import pytest

from hubctl.errors import HubctlError, InputError, OverloadedError
from serve.encodable import encodable_error, is_encodable

HALF = "\ud800"


def caught(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    [
        caught(InputError(f"no scheduler '{HALF}'", hint=f"not {HALF}", param=HALF)),
        caught(ValueError(f"tensor {HALF}")),
        caught(OverloadedError("full", retry_after_s=3), cause=KeyError(HALF + "x")),
        caught(InputError("what"), cause=ValueError(f"tensor {HALF}")),
    ],
)
def test_an_error_loses_its_halves_of_characters(error: Exception) -> None:
    told = caught(encodable_error(error))
    assert is_encodable("".join(traceback.format_exception(told)))
    if isinstance(error, HubctlError):
        assert type(told) is type(error)
        assert vars(told).keys() == vars(error).keys()
        assert str(told) == error.message.replace(HALF, "\\ud800")
    else:
        assert "tensor \\ud800" in str(told)


def test_others_stay_the_same_object() -> None:
    error = caught(InputError("no scheduler 'größer'"))
    assert encodable_error(error) is error
