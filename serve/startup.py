"""Why an engine did not start, from the text that Ray keeps of its constructor's traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hubctl import errors
from hubctl.errors import HubctlError

_TOLD = re.compile(r"^hubctl\.errors\.(\w+): (.+)(?:\nnext: (.+))?", re.MULTILINE)


@contextmanager
def hints_in_tracebacks() -> Iterator[None]:
    """Add the hint of a fault to what a traceback shows of it."""
    try:
        yield
    except HubctlError as error:
        if error.hint:
            error.add_note(f"next: {error.hint}")
        raise


def start_fault(tracebacks: Iterable[tuple[str, str]]) -> HubctlError | None:
    """The first fault that a person can mend, as the class that was raised; None where all are others.

    Args:
        tracebacks: Deployments that failed, and what Ray tells of each.
    """
    for name, text in tracebacks:
        if told := _TOLD.findall(text):
            cls, message, hint = told[-1]  # those before are what it follows from
            fault: HubctlError = getattr(errors, cls)(f"{name} cannot start: {message}", hint=hint or None)
            return fault
    return None
