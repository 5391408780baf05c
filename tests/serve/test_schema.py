from __future__ import annotations

import json
import math
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

import hubctl.errors
from hubctl.errors import AccessError, HubctlError, InputError, OverloadedError
from hubctl.refs import PinnedRef
from serve.config import Limits
from serve.engine.requests import LoraUse
from serve.schema import (
    GenerationBody,
    LoraBody,
    SegmentationBody,
    check_limits,
    fault_body,
    image_request,
    parse_size,
    validation_fault,
)


def subclasses(cls: type[HubctlError]) -> list[type[HubctlError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in subclasses(sub))]


STATUSES = {
    "HubctlError": 500, "InputError": 400, "DataError": 400, "DivergedError": 400, "NotFoundError": 404,
    "AccessError": 401, "AdapterError": 422, "AdapterMismatchError": 409, "IntegrityError": 502,
    "ConflictError": 409, "UnavailableError": 503, "OverloadedError": 429,
}  # fmt: skip


@pytest.mark.parametrize(
    "cls", [cls for cls in subclasses(HubctlError) if cls.__module__ == hubctl.errors.__name__]
)
def test_every_fault_has_a_status_also_after_pickling(cls: type[HubctlError]) -> None:
    error = pickle.loads(pickle.dumps(cls("what and where", hint="do this")))
    status, _, body = fault_body(error, "id-1")
    assert status == STATUSES[cls.__name__]
    assert body["error"]["message"] == "what and where"
    assert body["error"]["hint"] == "do this"
    assert body["error"]["request_id"] == "id-1"


def test_forbidden_is_not_unauthorized() -> None:
    status, _, body = fault_body(AccessError("no", forbidden=True), "id")
    assert (status, body["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize(("wait_s", "header"), [(0.2, "1"), (2.5, "3"), (60, "60")])
def test_overload_says_when_to_come_back(wait_s: float, header: str) -> None:
    assert fault_body(OverloadedError("full", retry_after_s=wait_s), "id")[1] == {"Retry-After": header}


@pytest.mark.parametrize(
    ("size", "expected"), [(None, (None, None)), ("auto", (None, None)), ("512x384", (512, 384))]
)
def test_size(size: str | None, expected: tuple[int | None, int | None]) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "64", "64x", "x64", "0x64", "-8x8", "65x64", "64 x 64", "1e3x8", "640000x8", "64X64"])  # fmt: skip  # noqa: E501
def test_bad_size(size: str) -> None:
    with pytest.raises(ValueError, match=r"WIDTHxHEIGHT|multiples"):
        parse_size(size)


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": 5}, "prompt", "valid string"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": "2"}, "n", "valid integer"),
        ({"n": True}, "n", "valid integer"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"size": "big"}, "size", "is not WIDTHxHEIGHT"),
        ({"size": "60x64"}, "size", "multiples of 8"),
        ({"response_format": "url"}, "response_format", "use 'b64_json'"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
        ({"guidance_scale": -1}, "guidance_scale", "greater than or equal to 0"),
        ({"guidance_scale": math.nan}, "guidance_scale", "finite number"),
        ({"guidance_scale": math.inf}, "guidance_scale", "finite number"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 1 << 63}, "seed", "less than"),
        ({"loras": {"id": "a/b"}}, "loras", "valid list"),
        ({"loras": [{"id": "nonesuch"}]}, "loras.0.id", "not a repository id"),
        ({"loras": [{"id": "a/b@../c"}]}, "loras.0.id", "not a revision"),
        ({"loras": [{"id": "/etc/passwd"}]}, "loras.0.id", "not a repository id"),
        ({"loras": [{"id": "a/b", "scale": 11}]}, "loras.0.scale", "less than or equal to 10"),
        ({"loras": [{"id": "a/b", "scale": "1"}]}, "loras.0.scale", "valid number"),
        ({"loras": [{"id": "a/b", "path": "/x"}]}, "loras.0.path", "unknown field"),
        ({"loras": [{}]}, "loras.0.id", "missing"),
        ({"steps": 5}, "steps", "unknown field 'steps'"),
        ({"model": 1}, "model", "valid string"),
        *(
            ({name: "a\ud800"}, name, "half of a character")
            for name in ("prompt", "model", "size", "user", "scheduler", "negative_prompt", "output_format")
        ),
        ({"loras": [{"id": "a/\udfff"}]}, "loras.0.id", "half of a character"),
    ],
)
def test_bad_field(change: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerationBody.model_validate({"prompt": "red apple"} | change)
    fault = validation_fault(caught.value.errors())
    assert fault.param == param
    assert message in fault.message
    assert param.partition(".")[0] in fault.message


def test_null_is_a_field_left_out() -> None:
    nulls = dict.fromkeys(GenerationBody.model_fields.keys() - {"prompt"})
    assert GenerationBody.model_validate({**nulls, "prompt": "a"}) == GenerationBody(prompt="a")
    assert GenerationBody.model_validate({"prompt": "a", "loras": [{"id": "a/b", "scale": None}]}).loras == [
        LoraBody(id="a/b")
    ]
    nulls = dict.fromkeys(SegmentationBody.model_fields.keys() - {"image"})
    text = json.dumps({**nulls, "image": "x"})
    assert SegmentationBody.model_validate_json(text) == SegmentationBody(image="x")
    with pytest.raises(ValidationError, match="colour"):
        GenerationBody.model_validate({"prompt": "a", "colour": None})


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 9}, "n"),
        ({"num_inference_steps": 151}, "num_inference_steps"),
        ({"size": "2048x2048"}, "size"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"negative_prompt": "x" * 4001}, "negative_prompt"),
        ({"loras": [{"id": "a/b"}] * 9}, "loras"),
    ],
)
def test_more_than_the_server_allows(change: dict[str, Any], param: str) -> None:
    body = GenerationBody.model_validate({"prompt": "red apple"} | change)
    with pytest.raises(InputError, match="this server allows") as caught:
        check_limits(body, Limits())
    assert caught.value.param == param


def test_what_is_allowed_reaches_the_engine_as_asked() -> None:
    body = GenerationBody.model_validate(
        {
            "prompt": "red apple", "n": 2, "size": "128x64", "negative_prompt": "blurry", "guidance_scale": 3,
            "num_inference_steps": 7, "scheduler": "ddim", "user": "u1",
        }
    )  # fmt: skip
    check_limits(body, Limits())
    uses = [LoraUse(ref=PinnedRef("a/b", "main", "c" * 40, "5" * 64), scale=0.5)]
    request = image_request(body, uses, seed=3, timeout_s=9, tenant="t")
    assert (request.width, request.height, request.num_images, request.seed) == (128, 64, 2, 3)
    assert (request.negative_prompt, request.guidance_scale, request.scheduler) == ("blurry", 3.0, "ddim")
    assert (request.num_inference_steps, request.loras, request.timeout_s) == (7, tuple(uses), 9)
    assert pickle.loads(pickle.dumps(request)) == request
