"""The HTTP routes, on plain FastAPI. They know engines and the hub by what they can do."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

import prometheus_client
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import hubctl
from hubctl.errors import HubctlError, InputError, NotFoundError, UnavailableError
from hubctl.refs import AdapterRef, check_repo_id
from serve import images, schema
from serve.boundary import Boundary, Metrics, request_id_of
from serve.config import ServeConfig
from serve.encodable import encodable
from serve.engine.requests import EngineInfo, ImageRequest, ImageResult, SegmentRequest, SegmentResult
from serve.resolve import AdapterCache, AdapterFacts, Resolver, ServedBase, find_base
from serve.tenant import tenant_of

SEED_LIMIT = 1 << 31
"""Chosen seeds stay below it: every client's integers hold them."""
GRACE_S = 5.0
"""How much longer the ingress waits than the engine may take: the engine's own word is the better one."""


class EngineClient(Protocol):
    """The engines, by the names of their bases. Errors of `hubctl.errors` arrive as themselves."""

    async def generate(self, base: str, request: ImageRequest) -> ImageResult:
        """Make images on `base`."""

    async def segment(self, base: str, request: SegmentRequest) -> SegmentResult:
        """Label an image on `base`."""

    async def infos(self) -> Mapping[str, EngineInfo | None]:
        """The state of every configured base; None for one that does not answer yet."""


def create_app(
    config: ServeConfig,
    engines: EngineClient,
    lookup: Callable[[AdapterRef], AdapterFacts],
    *,
    clock: Callable[[], float] = time.monotonic,
    choose_seed: Callable[[], int] = lambda: secrets.randbelow(SEED_LIMIT),
    send_request_id: bool = True,
) -> FastAPI:
    """The server's HTTP application.

    Args:
        config: limits, and the bases' names.
        engines: who makes the images.
        lookup: asks the hub about an adapter; blocks, and is called in a thread.
        clock: seconds, for the cache of names.
        choose_seed: for requests without one.
        send_request_id: whether answers carry `x-request-id`; not behind a proxy that adds it itself.
    """
    bases = _Bases(config, engines)
    cache = AdapterCache(ttl_s=config.resolve_ttl_s, stale_s=config.resolve_stale_s)
    resolver = Resolver(bases, lookup, cache, clock=clock)
    metrics = Metrics()
    limits = config.limits
    started = int(time.time())
    app = FastAPI(title="hubctl", version=hubctl.__version__)
    app.add_middleware(
        Boundary, metrics=metrics, max_body_bytes=limits.max_body_bytes, send_request_id=send_request_id
    )
    app.add_exception_handler(HubctlError, _explained)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)

    @app.post("/v1/images/generations", response_model_exclude_none=True)
    async def generations(
        body: Annotated[schema.GenerationBody, Body()], http: Request
    ) -> schema.ImagesAnswer:
        schema.check_limits(body, limits)
        loras = [(lora.id, lora.scale) for lora in body.loras]
        seed = choose_seed() if body.seed is None else body.seed
        tenant = tenant_of(http.headers.get("authorization"), body.user)
        async with asyncio.timeout(limits.timeout_s) as limit:
            target = await resolver.resolve("text-to-image", body.model, loras)
            left_s = _leave_to_engine(limit)
            request = schema.image_request(body, target.loras, seed=seed, timeout_s=left_s, tenant=tenant)
            result = await engines.generate(target.base.name, request)
        files = await asyncio.to_thread(lambda: [images.encode(i, body.output_format) for i in result.images])
        metrics.images.inc(len(files))
        height, width = result.images[0].shape[:2]
        return schema.ImagesAnswer(
            created=int(time.time()),
            data=[schema.ImageItem(b64_json=images.to_base64(file)) for file in files],
            output_format=body.output_format,
            size=f"{width}x{height}",
            hubctl=schema.Provenance(
                base=target.base.id,
                adapters=schema.adapters_used(target.loras),
                seed=seed,
                seeds=list(result.seeds),
                num_inference_steps=result.num_inference_steps,
                guidance_scale=result.guidance_scale,
                timings=schema.rounded(result.timings),
            ),
        )

    @app.post(
        "/v1/images/segmentations",
        response_model_exclude_none=True,
        openapi_extra=schema.segmentation_openapi(),
    )
    async def segmentations(request: Request) -> schema.SegmentsAnswer:
        body, data = await _segmentation(request)
        pixels = await asyncio.to_thread(
            images.decode, data, max_pixels=limits.max_input_pixels, param="image"
        )
        tenant = tenant_of(request.headers.get("authorization"), body.user)
        async with asyncio.timeout(limits.timeout_s) as limit:
            target = await resolver.resolve("image-segmentation", body.model, [])
            work = SegmentRequest(
                image=pixels,
                adapter=target.loras[0] if target.loras else None,
                timeout_s=_leave_to_engine(limit),
                tenant=tenant,
            )
            result = await engines.segment(target.base.name, work)
        found, picture = await asyncio.to_thread(_draw, pixels, result, body.output)
        return schema.SegmentsAnswer(
            created=int(time.time()),
            data=found,
            image=picture,
            hubctl=schema.Provenance(
                base=target.base.id,
                adapters=schema.adapters_used(target.loras),
                timings=schema.rounded(result.timings),
            ),
        )

    @app.get("/v1/models", response_model_exclude_none=True)
    async def models() -> schema.ModelsAnswer:
        served = await bases()
        adapters = [_adapter_item(facts, served, started) for facts in resolver.known()]
        return schema.ModelsAnswer(data=[_base_item(base, started) for base in served] + adapters)

    @app.get("/v1/models/{model:path}", response_model_exclude_none=True)
    async def model(model: str) -> schema.ModelItem:
        served = await bases()
        if base := find_base(served, model):
            return _base_item(base, started)
        try:
            ref = AdapterRef.parse(model)
        except InputError:
            raise NotFoundError(f"no model '{model}'", hint="GET /v1/models lists what there is") from None
        async with asyncio.timeout(limits.timeout_s):
            facts = await resolver.adapter(ref)
        return _adapter_item(facts, served, started)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        waiting = [name for name, info in (await engines.infos()).items() if info is None]
        state = {"status": "starting", "waiting_for": waiting} if waiting else {"status": "ready"}
        return JSONResponse(state, 503 if waiting else 200)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        metrics.observe(await engines.infos())
        text = prometheus_client.generate_latest(metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return app


class _Bases:
    """The served bases with their ids and tasks, which the engines know; asked until all have told them."""

    def __init__(self, config: ServeConfig, engines: EngineClient) -> None:
        self._config, self._engines = config, engines
        self._found: tuple[ServedBase, ...] | None = None

    async def __call__(self) -> tuple[ServedBase, ...]:
        if self._found is None:
            infos = await self._engines.infos()
            if missing := [name for name, info in infos.items() if info is None]:
                raise UnavailableError(
                    f"base {', '.join(missing)} is still starting", hint="try again when /readyz says 200"
                )
            self._found = tuple(
                ServedBase(
                    name=base.name,
                    id=_public_id(base.name, info.base_id),
                    aliases=base.aliases,
                    family=info.family,
                    task=info.task,
                )
                for base in self._config.bases
                if (info := infos[base.name]) is not None
            )
        return self._found


def _leave_to_engine(limit: asyncio.Timeout) -> float:
    """The seconds that the look-up left; `limit` grants the engine a little more to say so itself."""
    when_s = limit.when()
    assert when_s is not None
    limit.reschedule(when_s + GRACE_S)
    return when_s - asyncio.get_running_loop().time()


def _public_id(name: str, base_id: str) -> str:
    """What clients are told: a base from a folder goes by its name, so that no path of this machine shows."""
    try:
        return check_repo_id(base_id)
    except InputError:
        return name


def _base_item(base: ServedBase, created: int) -> schema.ModelItem:
    facts = {"kind": "base", "base": base.id, "family": base.family, "task": base.task}
    return schema.ModelItem(id=base.name, created=created, owned_by=base.id.partition("/")[0], hubctl=facts)


def _adapter_item(facts: AdapterFacts, bases: tuple[ServedBase, ...], created: int) -> schema.ModelItem:
    base = find_base(bases, facts.base_model) if facts.base_model else None
    pinned = facts.pinned
    about = {
        "kind": "adapter",
        "base": base.id if base else facts.base_model and encodable(facts.base_model),
        "served": base is not None,
        "task": facts.task and encodable(facts.task),
        "revision": pinned.commit,
        "sha256": pinned.sha256,
    }
    asked = pinned.repo_id if pinned.revision == "main" else f"{pinned.repo_id}@{pinned.revision}"
    return schema.ModelItem(
        id=asked, created=created, owned_by=pinned.repo_id.partition("/")[0], hubctl=about
    )


async def _segmentation(request: Request) -> tuple[schema.SegmentationBody, bytes]:
    """The fields and the image file of a segmentation request, from JSON or a multipart form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            body = schema.SegmentationBody.model_validate_json(await request.body())
            return body, images.from_base64(body.image, param="image")
        if kind == "multipart/form-data":
            async with request.form(max_files=2, max_fields=8) as form:
                if twice := next((key for key in form if len(form.getlist(key)) > 1), None):
                    raise InputError(f"field '{twice}' is given twice", param=twice)
                fields: dict[str, Any] = dict(form)
                file = fields.get("image")
                if isinstance(file, UploadFile):
                    fields["image"] = ""
                elif file is not None:
                    raise InputError("image: a form carries it as a file", param="image")
                body = schema.SegmentationBody.model_validate(fields)
                assert isinstance(file, UploadFile)  # a form without it has failed validation
                return body, await file.read()
    except ValidationError as error:
        raise schema.validation_fault(error.errors()) from None
    raise InputError(
        f"content type '{kind}' is not understood", hint="send multipart/form-data, or application/json"
    )


def _draw(
    pixels: images.Pixels, result: SegmentResult, output: str
) -> tuple[list[schema.SegmentItem], str | None]:
    """The classes found, largest first, and the picture that was asked for (base64 PNG)."""
    found = [
        schema.SegmentItem(
            id=label_id,
            label=encodable(result.id2label[label_id]),
            score=round(score, 6),
            share=round(float((result.labels == label_id).mean()), 6),
            color=images.hex_color(label_id),
            mask=images.to_base64(images.encode(images.mask_of(result.labels, label_id)))
            if output == "masks"
            else None,
        )
        for label_id, score in result.scores.items()
    ]
    found.sort(key=lambda item: -item.share)
    if output == "masks":
        return found, None
    picture = result.labels if output == "labels" else images.overlay(pixels, result.labels, result.id2label)
    return found, images.to_base64(images.encode(picture))


async def _explained(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubctlError)
    status, headers, body = schema.fault_body(error, request_id_of(request.scope))
    return JSONResponse(body, status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _explained(request, schema.validation_fault(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}
    fault = schema.Fault(
        error.status_code, "invalid_request_error", code.get(error.status_code, "bad_request")
    )
    message, hint = str(error.detail), None
    if fault.code == "route_not_found":
        message, hint = f"no route {request.url.path[:80]}", "GET /openapi.json lists them all"
    body = schema.error_body(message, fault, request_id_of(request.scope), hint=hint)
    return JSONResponse(body, error.status_code, error.headers)
