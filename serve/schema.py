"""HTTP shapes, in and out, and the table from faults to statuses: the only place that knows both.

Strangers' JSON arrives here, so this is the one module with pydantic: strict types, unknown fields refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue

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
from hubctl.refs import AdapterRef
from hubctl.retry_after import wait_header
from serve.config import Limits
from serve.encodable import encodable, is_encodable
from serve.engine.requests import ImageRequest, LoraUse, Timings

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
PIXEL_STEP = 8
"""Widths and heights are multiples of this: what the usual autoencoders divide by."""
_NULL = {"type": "null"}


class _Strict(BaseModel):
    # Field names such as `model` are the protocol's, not pydantic's business.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        """An explicit null is a field left out, as OpenAI's schema has it."""
        if not isinstance(body, dict):
            return body
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in body.items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Declare the nulls that `_drop_nulls` takes, in the form that pydantic gives them elsewhere."""
        described = handler(schema)
        body = handler.resolve_ref_schema(described)
        for name, field in body["properties"].items():
            if name not in body.get("required", ()) and _NULL not in field.get("anyOf", ()):
                about = {key: field.pop(key) for key in ("title", "default") if key in field}
                body["properties"][name] = {"anyOf": [field, _NULL], **about}
        return described

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, str) and not is_encodable(value):
            raise ValueError("holds half of a character (a lone surrogate)")
        return value


def _one_ref(text: str) -> str:
    try:
        AdapterRef.parse(text)
    except InputError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None
    return text


class LoraBody(_Strict):
    """One adapter of a request and its weight."""

    id: str
    """`owner/name`, optionally `@revision`."""
    scale: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0

    _check_id = field_validator("id")(_one_ref)


class GenerationBody(_Strict):
    """`POST /v1/images/generations`: OpenAI's fields, then ours."""

    model: str | None = None
    """A base's name or id, or an adapter `owner/name[@revision]`; left out, the base follows from `loras`."""
    prompt: Annotated[str, Field(min_length=1)]
    n: Annotated[int, Field(ge=1)] = 1
    size: str | None = None
    """`WIDTHxHEIGHT` in pixels, or `auto` (the base's own)."""
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    user: str | None = None
    """Of requests without a key, those of one user share one turn (`serve.tenant`); it is not kept."""
    negative_prompt: str | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    """Of the first image; chosen and told in the answer when not given."""
    scheduler: str | None = None
    loras: list[LoraBody] = Field(default_factory=list)

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str | None) -> str | None:
        parse_size(size)
        return size

    @field_validator("response_format", mode="before")
    @classmethod
    def _check_response_format(cls, value: Any) -> Any:
        if value == "url":
            raise ValueError("'url' is not supported: this server keeps no images; use 'b64_json'")
        return value


class SegmentationBody(_Strict):
    """`POST /v1/images/segmentations` as JSON; a multipart form has the same fields, with `image` a file."""

    image: str
    """PNG, JPEG or WebP, base64."""
    model: str | None = None
    output: Literal["masks", "overlay", "labels"] = "masks"
    user: str | None = None
    """As in `GenerationBody`."""


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """`"512x384"` -> (512, 384) in pixels; None or `auto` -> (None, None). Raises `ValueError` otherwise."""
    if size is None or size == "auto":
        return None, None
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"'{size}' is not WIDTHxHEIGHT, for example 512x512, or auto")
    width, height = int(match[1]), int(match[2])
    if width % PIXEL_STEP or height % PIXEL_STEP:
        raise ValueError(f"width and height of '{size}' are not both multiples of {PIXEL_STEP}")
    return width, height


def check_limits(body: GenerationBody, limits: Limits) -> None:
    """Refuse what is well-formed but more than this server allows.

    Raises:
        InputError: naming the field and the limit.
    """
    width, height = parse_size(body.size)
    asked: list[tuple[str, int, int, str]] = [
        ("n", body.n, limits.max_images, "images"),
        ("num_inference_steps", body.num_inference_steps or 0, limits.max_steps, "steps"),
        ("loras", len(body.loras), limits.max_loras, "adapters"),
        ("size", (width or 0) * (height or 0), limits.max_pixels, "pixels"),
        ("prompt", len(body.prompt), limits.max_prompt_chars, "characters"),
        ("negative_prompt", len(body.negative_prompt or ""), limits.max_prompt_chars, "characters"),
    ]
    for param, value, most, unit in asked:
        if value > most:
            raise InputError(f"{param}: {value:,} {unit}; this server allows {most:,}", param=param)


def image_request(
    body: GenerationBody, loras: Sequence[LoraUse], *, seed: int, timeout_s: float, tenant: str
) -> ImageRequest:
    """What an engine is asked, from what the client asked and what its adapters resolved to."""
    width, height = parse_size(body.size)
    return ImageRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=width,
        height=height,
        num_images=body.n,
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        seed=seed,
        scheduler=body.scheduler,
        loras=tuple(loras),
        timeout_s=timeout_s,
        tenant=tenant,
    )


class AdapterUsed(BaseModel):
    """Which bytes took part in an answer."""

    id: str
    revision: str
    """The commit, 40 hex digits."""
    sha256: str
    """Of the weights file."""
    scale: float


class Provenance(BaseModel):
    """The `hubctl` part of an answer: everything needed to ask for the same again."""

    base: str
    adapters: list[AdapterUsed]
    seed: int | None = None
    seeds: list[int] | None = None
    """One for each image."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    timings: dict[str, float]
    """Seconds by stage."""


class ImageItem(BaseModel):
    """One generated image."""

    b64_json: str


class ImagesAnswer(BaseModel):
    """OpenAI's `ImagesResponse`, and `hubctl`."""

    created: int
    data: list[ImageItem]
    output_format: str
    size: str
    hubctl: Provenance


class SegmentItem(BaseModel):
    """One class found in the image."""

    id: int
    """Its value in the label image."""
    label: str
    score: float
    """Mean probability over its pixels."""
    share: float
    """Of the image's pixels, 0 to 1."""
    color: str
    """In the overlay, `#rrggbb`."""
    mask: str | None = None
    """PNG, base64: 255 where the class is; with `output = "masks"`."""


class SegmentsAnswer(BaseModel):
    """What `POST /v1/images/segmentations` answers."""

    created: int
    data: list[SegmentItem]
    image: str | None = None
    """PNG, base64: the overlay, or the label image (one byte a pixel)."""
    hubctl: Provenance


class ModelItem(BaseModel):
    """OpenAI's `Model`, and `hubctl`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    hubctl: dict[str, Any]


class ModelsAnswer(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelItem]


def adapters_used(loras: Sequence[LoraUse]) -> list[AdapterUsed]:
    """The adapters of a request, as told in its answer."""
    return [
        AdapterUsed(id=use.ref.repo_id, revision=use.ref.commit, sha256=use.ref.sha256, scale=use.scale)
        for use in loras
    ]


def rounded(timings: Timings) -> dict[str, float]:
    """Seconds by stage, to a tenth of a millisecond."""
    return {name: round(seconds, 4) for name, seconds in asdict(timings).items()}


@dataclass(frozen=True, slots=True)
class Fault:
    """How one class of fault looks over HTTP."""

    status: int
    type: str
    code: str


FAULTS: dict[type[BaseException], Fault] = {
    HubctlError: Fault(500, "server_error", "server_error"),
    InputError: Fault(400, "invalid_request_error", "invalid_value"),
    NotFoundError: Fault(404, "invalid_request_error", "model_not_found"),
    AccessError: Fault(401, "authentication_error", "unauthorized"),
    AdapterError: Fault(422, "invalid_request_error", "adapter_refused"),
    AdapterMismatchError: Fault(409, "invalid_request_error", "adapter_mismatch"),
    ConflictError: Fault(409, "invalid_request_error", "conflict"),
    IntegrityError: Fault(502, "server_error", "integrity"),
    UnavailableError: Fault(503, "server_error", "unavailable"),
    OverloadedError: Fault(429, "rate_limit_error", "overloaded"),
}
"""Looked up along the class's own ancestry, so a subclass needs no line of its own."""


def fault_of(error: HubctlError) -> Fault:
    """The status, type and code of the nearest ancestor of the error's class that has them."""
    if isinstance(error, AccessError) and error.forbidden:
        return Fault(403, "permission_error", "forbidden")
    return next(FAULTS[cls] for cls in type(error).__mro__ if cls in FAULTS)


def error_body(
    message: str, fault: Fault, request_id: str, *, param: str | None = None, hint: str | None = None
) -> dict[str, Any]:
    """An OpenAI-shaped error; `hint` (what to do next) is there only when something is known."""
    error = {
        "message": encodable(message),
        "type": fault.type,
        "code": fault.code,
        "param": param if param is None else encodable(param),
        "request_id": request_id,
    }
    return {"error": error | ({"hint": encodable(hint)} if hint else {})}


def fault_body(error: HubctlError, request_id: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, extra headers and body for an explained fault."""
    fault = fault_of(error)
    param = error.param if isinstance(error, InputError) else None
    headers: dict[str, str] = {}
    if isinstance(error, OverloadedError | UnavailableError) and error.retry_after_s is not None:
        headers["Retry-After"] = wait_header(error.retry_after_s)
    body = error_body(error.message, fault, request_id, param=param, hint=error.hint)
    return fault.status, headers, body


def validation_fault(problems: Sequence[Any]) -> InputError:
    """The first of pydantic's problems, as one line that names the field.

    `problems` is what `ValidationError.errors()` and FastAPI's `RequestValidationError.errors()` give.
    """
    first = problems[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    kind = first["type"]
    if kind == "json_invalid":
        return InputError("the body is not valid JSON")
    param = ".".join(path)
    if kind == "extra_forbidden":
        return InputError(f"unknown field '{param}'", param=param)
    if kind == "missing":
        return InputError(
            f"field '{param}' is missing" if param else "the body is missing", param=param or None
        )
    if kind in ("model_type", "model_attributes_type"):
        return InputError(
            f"{param or 'the body'} is not a JSON object",
            hint=None if param else "send one, with the header Content-Type: application/json",
            param=param or None,
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    return InputError(f"{param}: {message}" if param else message, param=param or None)


def segmentation_openapi() -> dict[str, Any]:
    """The segmentation route's body for `/openapi.json`: the route reads it by hand, in two forms."""
    body = SegmentationBody.model_json_schema()
    form = {**body, "properties": {**body["properties"], "image": {"type": "string", "format": "binary"}}}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": body}}
    return {"requestBody": {"required": True, "content": content}}
