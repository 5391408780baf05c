"""A client of the server's HTTP routes, with the standard library alone.

The server's own faults arrive as the classes of `hubctl.errors`, with their hints.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hubctl.errors import (
    AccessError,
    AdapterError,
    AdapterMismatchError,
    ConflictError,
    HubctlError,
    InputError,
    IntegrityError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from hubctl.loopback import LOOPBACK
from hubctl.retry_after import read_wait_s

TIMEOUT_S = 660.0
"""A little more than the server gives a request by default: its own word is the better one."""
_SENT = re.compile(r"[!-~]*")
"""What may stand in a request's first line: the rest is written as %C3%BC and the like."""

_BY_STATUS: dict[int, type[HubctlError]] = {
    400: InputError,
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    405: InputError,
    409: ConflictError,
    413: InputError,
    422: AdapterError,
    429: OverloadedError,
    502: IntegrityError,
    503: UnavailableError,
    504: UnavailableError,
}
_BY_CODE: dict[str, type[HubctlError]] = {"adapter_mismatch": AdapterMismatchError}


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """An adapter as typed: `OWNER/NAME[@REVISION][:SCALE]`."""

    id: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraChoice:
        """Read what was typed.

        Raises:
            InputError: the id is none, or the scale is no number.
        """
        from hubctl.refs import AdapterRef

        name, colon, scale = text.partition(":")
        ref = AdapterRef.parse(name)
        if not colon:
            return cls(str(ref))
        try:
            return cls(str(ref), float(scale))
        except ValueError:
            raise InputError(f"'{scale}' is not a scale", hint=f"write {name}:0.8") from None


@dataclass(frozen=True, slots=True)
class Server:
    """A hubctl server at `url`."""

    url: str

    def generate(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /v1/images/generations`; fields that are None are left out."""
        return self._images("/v1/images/generations", fields)

    def segment(self, image: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /v1/images/segmentations` with the file `image`."""
        try:
            data = image.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {image}: {error.strerror}") from error
        return self._images("/v1/images/segmentations", {**fields, "image": base64.b64encode(data).decode()})

    def models(self) -> list[dict[str, Any]]:
        """`GET /v1/models`."""
        found = self._call("/v1/models", None).get("data")
        if not isinstance(found, list):
            raise self._foreign()
        return found

    def _images(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._call(path, fields)
        if "hubctl" not in answer:  # another server of the same shape: it would not say what made the image
            raise self._foreign()
        return answer

    def _call(self, path: str, fields: Mapping[str, Any] | None) -> dict[str, Any]:
        body = None
        if fields is not None:
            body = json.dumps({key: value for key, value in fields.items() if value is not None}).encode()
        host, port = self._address()
        request = urllib.request.Request(
            self.url.rstrip("/") + path,
            body,
            {"Content-Type": "application/json", "Accept": "application/json"},
        )
        # A proxy of the environment cannot reach this machine's own loopback.
        handlers = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise self._fault(error) from None
        except TimeoutError as error:
            raise UnavailableError(f"no answer from {self.url} in {TIMEOUT_S:.0f} s") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UnavailableError(
                f"no server at {self.url}: {getattr(reason, 'strerror', None) or reason}",
                hint=f"start one: hubctl serve --base emoji-64 --port {port or 8000}",
            ) from error
        except ValueError as error:
            raise self._foreign() from error
        if not isinstance(answer, dict):
            raise self._foreign()
        return answer

    def _address(self) -> tuple[str, int | None]:
        """Host and port of the URL, which nothing has checked so far."""
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:  # brackets without an address, a port that is none
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or not _SENT.fullmatch(parts.path + parts.query):
            raise InputError(f"'{self.url}' is not a server's URL", hint="for example http://127.0.0.1:8000")
        if "@" in parts.netloc:  # not quoted: it holds a password
            raise InputError("--server holds a user or a password, which is not sent", hint="leave it out")
        return host, port

    def _foreign(self) -> UnavailableError:
        return UnavailableError(
            f"{self.url} answers, but not like a hubctl server", hint="is the URL right? See --server"
        )

    def _fault(self, response: urllib.error.HTTPError) -> HubctlError:
        """The server's own error, as the class it had there."""
        try:
            error = json.loads(response.read())["error"]
            message, code, hint = str(error["message"]), str(error["code"]), error.get("hint")
        except (ValueError, LookupError, TypeError, AttributeError):
            return self._foreign()
        cls = _BY_CODE.get(code) or _BY_STATUS.get(response.code)
        if cls is InputError:
            return InputError(message, hint=hint, param=error.get("param"))
        if cls is AccessError:
            return AccessError(message, hint=hint, forbidden=response.code == 403)
        wait_s = read_wait_s(response.headers.get("Retry-After"))
        if cls is OverloadedError and wait_s is not None:
            return OverloadedError(message, hint=hint, retry_after_s=wait_s)
        if cls is UnavailableError:
            return UnavailableError(message, hint=hint, retry_after_s=wait_s)
        if cls is None:
            return HubctlError(f"{self.url}: {message}", hint=hint)
        return cls(message, hint=hint)


def image_bytes(text: str, server: Server) -> bytes:
    """The file in a `b64_json`, `mask` or `image` field of an answer."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise UnavailableError(f"{server.url} sent a broken image") from error


def numbered(path: Path, count: int) -> Sequence[Path]:
    """`out.png` for one image; `out-1.png`, `out-2.png`, ... for more."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]
