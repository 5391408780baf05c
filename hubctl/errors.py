"""Every fault that hubctl explains to a person, as one tree.

    HubctlError                      message + hint (the next command to type)
     ├── InputError                  a field, flag, file or setting is wrong
     │    ├── DataError              training data: folder, caption, mask, image
     │    └── DivergedError          a training came to numbers that are none: its rate is too high
     ├── NotFoundError               no such repository, revision, adapter, base, remote
     ├── AccessError                 no token, a wrong token, or no right to do this
     ├── AdapterError                the adapter itself is refused
     │    └── AdapterMismatchError   it is sound, but does not fit this base
     ├── IntegrityError              bytes are not what was promised
     ├── ConflictError               it exists already, the parent moved, the port is taken
     ├── UnavailableError            a registry or server cannot be reached; retry_after_s where that is known
     └── OverloadedError             the queue is full; retry_after_s says when to come back

The tree knows neither exit codes nor HTTP: `hubctl/cli/main.py` and `serve/schema.py` each hold one table.
Anything that is not in this tree is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Any


class HubctlError(Exception):
    """A fault with an explanation: what and where in `message`, the next command to type in `hint`."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own pickling drops keyword arguments; errors cross process borders in the server.
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _rebuild(cls: type[HubctlError], message: str, state: dict[str, Any]) -> HubctlError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class InputError(HubctlError):
    """A field, flag, file or setting is wrong; `param` names it when a field does."""

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class DataError(InputError):
    """Training data cannot be used: the folder, a caption, a mask or an image."""


class DivergedError(InputError):
    """A training came to numbers that are none, which a lower rate mends."""


class NotFoundError(HubctlError):
    """No such repository, revision, adapter, base or remote."""


class AccessError(HubctlError):
    """No token, a wrong token, or (`forbidden`) a good token without the right."""

    def __init__(self, message: str, *, hint: str | None = None, forbidden: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.forbidden = forbidden


class AdapterError(HubctlError):
    """The adapter itself is refused: unsafe, malformed or not finite."""


class AdapterMismatchError(AdapterError):
    """The adapter is sound but does not fit this base."""


class IntegrityError(HubctlError):
    """Bytes that arrived or lie on disk are not the ones that were promised."""


class ConflictError(HubctlError):
    """Something exists already, a parent commit moved on, or a port is taken."""


class UnavailableError(HubctlError):
    """A registry or server cannot be reached; ask again in `retry_after_s` seconds, where that is known."""

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class OverloadedError(HubctlError):
    """The queue is full; come back in `retry_after_s` seconds."""

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
