"""What huggingface_hub raises, as errors of ours: the other half of client.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol
from urllib.parse import urlsplit

from hubctl.errors import (
    AccessError,
    ConflictError,
    InputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from hubctl.retry_after import read_wait_s

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_PAUSE_S = 60.0  # where a hub asks for one and does not say how long


class Registry(Protocol):
    """What a message says of the registry; `str()` of it is "name (endpoint)"."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def endpoint(self) -> str: ...  # noqa: D102
    @property
    def token(self) -> str | None: ...  # noqa: D102


@contextmanager
def translated(what: str, hub: Registry) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into our errors; `what` names the thing asked for."""
    import httpx2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        SafetensorsParsingError,
    )

    try:
        yield
    except HfHubHTTPError as error:
        explain(error, what, hub)
    except (HFValidationError, SafetensorsParsingError) as error:
        raise InputError(f"{what}: {error}") from error
    except OfflineModeIsEnabled as error:
        raise UnavailableError(
            f"{hub} is not asked: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE"
        ) from error
    except httpx2.HTTPError as error:
        unreachable(error, hub)
    except json.JSONDecodeError as error:
        raise _no_hub(hub) from error


@contextmanager
def understood(hub: Registry) -> Iterator[None]:
    """Around the reading of an answer: what fails on its shape is the registry's fault, not ours."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError:
        raise  # of what was asked, not of the answer
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise _no_hub(hub) from error


def _no_hub(hub: Registry) -> UnavailableError:
    return UnavailableError(
        f"{hub} answers, but not like a hub", hint="is the URL right? See `hubctl remote list`"
    )


def explain(error: HfHubHTTPError, what: str, hub: Registry) -> NoReturn:
    """Raise our error for an HTTP answer of the registry."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    said = _without_token(error.server_message or "", hub) or f"HTTP {status}"
    if isinstance(error, GatedRepoError):
        raise AccessError(
            f"{what} is gated on {hub}: {said}",
            hint=f"ask for access at {hub.endpoint}",
            forbidden=True,
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise NotFoundError(f"{hub} has no such revision: {what}", hint="try it without @revision") from error
    if isinstance(error, RemoteEntryNotFoundError):
        raise NotFoundError(f"{hub} has no such file: {what}") from error
    if isinstance(error, RepositoryNotFoundError):
        hint = "check the spelling with `hubctl list`"
        raise NotFoundError(
            f"{hub} has no repository {what}",
            hint=hint if hub.token else f"{hint}, or, if it is private, {login_command(hub)}",
        ) from error
    if status == 401:
        raise AccessError(
            f"{hub} refuses the token" if hub.token else f"{hub} wants a token for {what}",
            hint=login_command(hub),
        ) from error
    if status == 403:
        raise AccessError(
            f"{hub} forbids this for {what}: {said}",
            hint="use a repository of your own (`hubctl whoami`), or a token with write access",
            forbidden=True,
        ) from error
    if status == 404:
        raise NotFoundError(f"{hub} has no {what}: {said}") from error
    if status in (409, 412):
        raise ConflictError(
            f"{what} changed on {hub} in the meantime: {said}",
            hint="push again to put your files on top",
        ) from error
    wait_s = read_wait_s(error.response.headers.get("Retry-After"))
    if status == 429:
        wait_s = _PAUSE_S if wait_s is None else wait_s
        raise OverloadedError(f"{hub} asks for a pause: {said}", retry_after_s=wait_s) from error
    if status >= 500:
        raise UnavailableError(
            f"{hub} failed ({status}): {said}", hint="try again in a while", retry_after_s=wait_s
        ) from error
    raise InputError(f"{hub} refuses {what}: {said}") from error


def unreachable(error: Exception, hub: Registry) -> NoReturn:
    """Raise our error for a registry that does not answer."""
    reason = _without_token(str(error), hub) or type(error).__name__
    raise UnavailableError(
        f"cannot reach {hub}: {reason}",
        hint="start it (`hubctl registry serve`), or choose another (`hubctl remote list`)",
    ) from error


def _without_token(text: str, hub: Registry) -> str:
    """What others said, without the token that they may have quoted; HTTP libraries quote bad headers."""
    for secret in {hub.token, hub.token.strip()} - {""} if hub.token else ():
        for quoted in (secret, ascii(secret)[1:-1], repr(secret.encode())[2:-1]):
            text = text.replace(quoted, "***")
    return text


def login_command(hub: Registry) -> str:
    """What to type to log in there; an endpoint from HF_ENDPOINT has no name, and login goes there anyway."""
    named = hub.name != urlsplit(hub.endpoint).netloc
    return f"hubctl login --remote {hub.name}" if named else "hubctl login"
