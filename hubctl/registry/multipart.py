"""Large files in parts: for proxies that take no long bodies, and networks that break long transfers.

Parts are kept as files of their own and joined at the end: whoever still writes a part then, writes into
nothing that anybody reads.
"""

from __future__ import annotations

import secrets
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubctl.errors import InputError
from hubctl.registry.services import Services
from hubctl.registry.wire import read_json, services_of

MAX_PARTS = 10_000
LINK_LIFETIME_S = 24 * 3600
_PURPOSE = "lfs parts"
_COPY_BYTES = 4 * 1024 * 1024


def size_of_parts(size_bytes: int, part_bytes: int) -> int:
    """Bytes of each part but the last: `part_bytes`, or more where that would make too many parts."""
    return max(part_bytes, -(-size_bytes // MAX_PARTS))


def part_sizes(size_bytes: int, part_bytes: int) -> list[int]:
    """Bytes of each part of a file, in order."""
    whole, rest = divmod(size_bytes, part_bytes)
    return [part_bytes] * whole + ([rest] if rest else [])


def upload_action(
    services: Services, base_url: str, *, user: str, oid: str, size: int, part_bytes: int
) -> dict[str, Any]:
    """The LFS `upload` action that sends a file in parts."""
    part_bytes = size_of_parts(size, part_bytes)
    permit = services.signer.sign(
        _PURPOSE,
        lifetime_s=LINK_LIFETIME_S,
        user=user,
        oid=oid,
        size=size,
        part=part_bytes,
        upload=secrets.token_hex(16),
    )
    address = f"{base_url}/lfs/{permit}"
    count = len(part_sizes(size, part_bytes))
    parts = {f"{number:05d}": f"{address}/part/{number}" for number in range(1, count + 1)}
    return {"href": f"{address}/complete", "header": {"chunk_size": str(part_bytes), **parts}}


async def upload_part(request: Request) -> Response:
    """`PUT /lfs/{signature}/part/{number}`: one part; again replaces it."""
    services = services_of(request)
    permit = services.signer.check(_PURPOSE, request.path_params["signature"])
    sizes = part_sizes(permit["size"], permit["part"])
    number = _number(request.path_params["part"], len(sizes))
    with services.blobs.draft() as draft:
        async for data in request.stream():
            draft.write(data)
            if draft.size_bytes > sizes[number - 1]:
                raise InputError(f"part {number} is longer than its {sizes[number - 1]} bytes")
        if draft.size_bytes < sizes[number - 1]:
            raise InputError(f"part {number} has {draft.size_bytes} bytes, not {sizes[number - 1]}")
        draft.set_aside(_part_name(permit, number))
        return Response(headers={"ETag": f'"{draft.sha256}"'})


async def complete(request: Request) -> Response:
    """`POST /lfs/{signature}/complete`: join the parts."""
    services = services_of(request)
    permit = services.signer.check(_PURPOSE, request.path_params["signature"])
    fields = await read_json(request)
    count = len(part_sizes(permit["size"], permit["part"]))
    if fields.get("oid") != permit["oid"]:
        raise InputError(f"these parts are of {permit['oid']}", param="oid")
    if not isinstance(parts := fields.get("parts"), list) or len(parts) != count:
        raise InputError(f"field 'parts' must list {count} parts", param="parts")
    await run_in_threadpool(_join, services, permit, count)
    return JSONResponse({"success": True})


def _join(services: Services, permit: dict[str, Any], count: int) -> None:
    # A client whose connection broke asks again: what is joined already is an answer too.
    if services.blobs.size(permit["oid"]) == permit["size"] and services.uploads.holds(
        permit["user"], "blob", permit["oid"]
    ):
        services.blobs.touch(permit["oid"])
        return
    paths = [services.blobs.aside(_part_name(permit, number)) for number in range(1, count + 1)]
    with services.blobs.draft() as draft:
        for number, path in enumerate(paths, 1):
            try:
                with path.open("rb") as part:
                    while data := part.read(_COPY_BYTES):
                        draft.write(data)
            except FileNotFoundError as error:
                raise InputError(f"part {number} of {permit['oid']} has not arrived") from error
        draft.publish_sha256(permit["oid"])
    services.uploads.record_held(permit["user"], "blob", permit["oid"])
    for path in paths:
        path.unlink(missing_ok=True)


def _number(text: str, count: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= count:
        raise InputError(f"this upload has the parts 1 to {count}, not {text[:20]!r}")
    return int(text)


def _part_name(permit: dict[str, Any], number: int) -> str:
    return f"{permit['upload']}.{number:05d}"
