from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from hubctl.errors import OverloadedError, UnavailableError
from serve.api import create_app
from serve.config import Limits, ServeConfig
from serve.engine.requests import ImageRequest
from serve.schema import GenerationBody, LoraBody, SegmentationBody
from tests.serve.local import LocalEngines, Shelf, facts, open_local
from tests.serve.waiting import until

GENERATIONS, SEGMENTATIONS = "/v1/images/generations", "/v1/images/segmentations"


class Site:
    """A server and its parts."""

    def __init__(self, config: ServeConfig, engines: LocalEngines) -> None:
        self.engines, self.shelf = engines, Shelf()
        app = create_app(config, engines, self.shelf.lookup, choose_seed=lambda: 77)
        self.client = TestClient(app, raise_server_exceptions=False)

    def generate(self, **fields: Any) -> Any:
        return self.client.post(GENERATIONS, json={"prompt": "red apple"} | fields)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(*open_local(tmp_path))
    with site.client:
        yield site


def pixels(answer: Any, index: int = 0) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][index]["b64_json"]))))


def png(side_px: int = 8) -> bytes:
    """Left half dark, right half bright."""
    data = np.zeros((side_px, side_px, 3), dtype=np.uint8)
    data[:, side_px // 2 :] = 255
    out = io.BytesIO()
    Image.fromarray(data).save(out, "PNG")
    return out.getvalue()


PICTURE = base64.b64encode(png()).decode()


def fault(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "code", "param", "request_id"} <= error.keys()
    assert error["request_id"] == response.headers["x-request-id"]
    return error


# -- generations ---------------------------------------------------------------------------------------------


def test_generation_says_what_made_it(site: Site) -> None:
    site.shelf.put(facts("alice/ink"), facts("bob/wash"))
    answer = site.generate(model="alice/ink", loras=[{"id": "bob/wash", "scale": 0.5}], n=2, seed=5)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["hubctl"]["base"] == "tiny"
    assert body["hubctl"]["adapters"] == [
        {"id": "alice/ink", "revision": "c" * 40, "sha256": "5" * 64, "scale": 1.0},
        {"id": "bob/wash", "revision": "c" * 40, "sha256": "5" * 64, "scale": 0.5},
    ]
    assert (body["hubctl"]["seed"], body["hubctl"]["seeds"]) == (5, [5, 6])
    assert body["hubctl"]["timings"].keys() == {"queue_s", "load_s", "run_s", "total_s"}
    assert (body["size"], body["output_format"], len(body["data"])) == ("64x64", "png", 2)
    assert (pixels(answer, 0) != pixels(answer, 1)).any()


def test_same_request_same_image_and_a_chosen_seed_is_told(site: Site) -> None:
    first, second = site.generate(), site.generate(seed=77)
    assert first.json()["hubctl"]["seed"] == 77
    assert (pixels(first) == pixels(second)).all()
    assert (pixels(site.generate(seed=78)) != pixels(first)).any()


@pytest.mark.parametrize("model", [None, "tiny", "acme/tiny"])
def test_base_by_any_of_its_names(site: Site, model: str | None) -> None:
    answer = site.generate(**({"model": model} if model else {}), size="128x64", output_format="jpeg")
    assert answer.status_code == 200, answer.text
    assert pixels(answer).shape == (64, 128, 3)
    assert site.shelf.asked == []


def test_engine_gets_the_fields(site: Site) -> None:
    answer = site.generate(num_inference_steps=9, guidance_scale=2, negative_prompt="blue", scheduler="euler")
    request = site.engines.last
    assert isinstance(request, ImageRequest)
    assert (request.num_inference_steps, request.guidance_scale) == (9, 2.0)
    assert (request.negative_prompt, request.scheduler) == ("blue", "euler")
    told = answer.json()["hubctl"]
    assert (told["num_inference_steps"], told["guidance_scale"]) == (9, 2.0)
    assert request.timeout_s is not None
    assert Limits().timeout_s - 30 < request.timeout_s <= Limits().timeout_s  # what the look-up left of it


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"colour": "red"}, 400, "colour", "unknown field"),
        ({"prompt": ""}, 400, "prompt", "at least 1"),
        ({"n": 99}, 400, "n", "this server allows 8"),
        ({"num_inference_steps": 9999}, 400, "num_inference_steps", "this server allows 150"),
        ({"size": "9992x9992"}, 400, "size", "this server allows"),
        ({"response_format": "url"}, 400, "response_format", "b64_json"),
        ({"loras": [{"id": "../../etc"}]}, 400, "loras.0.id", "not a repository id"),
        ({"model": "nonesuch"}, 404, None, "no model 'nonesuch'"),
        ({"model": "alice/ghost"}, 404, None, "no repository alice/ghost"),
        ({"model": "alice/ink@v9/../x"}, 404, None, "no model"),
        ({"model": "carol/other"}, 409, None, "trained for acme/huge, which this server does not run"),
        ({"loras": [{"id": "carol/bare"}]}, 422, None, "names no base model"),
        ({"model": "dave/pets"}, 400, "model", "does image-segmentation"),
        ({"model": "tiny-seg"}, 400, "model", "does image-segmentation"),
    ],
)
def test_refusals(site: Site, fields: dict[str, Any], status: int, param: str | None, words: str) -> None:
    site.shelf.put(
        facts("carol/other", "acme/huge"), facts("carol/bare", None), facts("dave/pets", "acme/tiny-seg")
    )
    error = fault(site.generate(**fields), status)
    assert words in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "body is missing"),
        (b"[]", "the body is not a JSON object"),
        (b'"x"', "the body is not a JSON object"),
        (b'{"prompt": "x", "loras": ["a/b"]}', "loras.0 is not a JSON object"),
    ],
)
def test_bodies_that_are_no_objects(site: Site, body: bytes, words: str) -> None:
    response = site.client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert words in fault(response, 400)["message"]


def test_a_body_without_its_content_type_is_told_the_header(site: Site) -> None:
    """What `curl -d` sends by itself."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    error = fault(site.client.post(GENERATIONS, content=b'{"prompt": "x"}', headers=form), 400)
    assert "Content-Type: application/json" in error["hint"]


def test_halves_of_characters_are_refused_by_the_field(site: Site) -> None:
    for field in ("scheduler", "model", "size", "user"):
        text = json.dumps({"prompt": "a", field: "\ud800"})
        answer = site.client.post(GENERATIONS, content=text, headers={"content-type": "application/json"})
        assert fault(answer, 400)["param"] == field
    for charset, half in (("utf-7", "+2AA-"), ("unicode_escape", "\\ud800")):
        for field in ("model", "user"):
            body = f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{half}\r\n'.encode()
            body += b'--x\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
            kind = f"multipart/form-data; boundary=x; charset={charset}"
            answer = site.client.post(
                SEGMENTATIONS, content=body + png() + b"\r\n--x--\r\n", headers={"content-type": kind}
            )
            assert fault(answer, 400)["param"] == field


def test_a_card_with_half_of_a_character_can_be_told(site: Site) -> None:
    site.shelf.put(facts("eve/half", "acme/\ud800"))
    error = fault(site.generate(model="eve/half"), 409)
    assert "was trained for acme/\\ud800, which" in error["message"]
    assert site.client.get("/v1/models/eve/half").json()["hubctl"]["base"] == "acme/\\ud800"
    assert site.client.get("/v1/models").status_code == 200


def test_body_too_large_is_413_also_without_a_length(tmp_path: Path) -> None:
    config, engines = open_local(tmp_path)
    site = Site(with_limits(config, max_body_bytes=1000), engines)
    with site.client:
        assert fault(site.generate(prompt="x" * 2000), 413)["code"] == "body_too_large"
        parts = iter([b'{"prompt": "', b"x" * 2000, b'"}'])
        response = site.client.post(GENERATIONS, content=parts, headers={"content-type": "application/json"})
        assert fault(response, 413)["message"] == "the body is larger than 1,000 bytes"
        assert site.generate().status_code == 200


# -- tenants -------------------------------------------------------------------------------------------------


def test_the_tenant_is_the_key_else_the_user_else_nobody(site: Site) -> None:
    def tenant(key: str | None = None, user: str | None = None) -> str:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        fields = {"user": user} if user else {}
        found = set()
        for path, body in ((GENERATIONS, {"prompt": "red apple"}), (SEGMENTATIONS, {"image": PICTURE})):
            assert site.client.post(path, json=body | fields, headers=headers).status_code == 200
            assert site.engines.last is not None
            assert "tenant" not in repr(site.engines.last)  # a log never has it
            found.add(site.engines.last.tenant)
        assert len(found) == 1  # the same on both routes
        return found.pop()

    assert tenant() == ""
    assert tenant(key="k1") == tenant(key="k1", user="ann") == tenant(key="k1", user="bob")
    assert len({tenant(), tenant(key="k1"), tenant(key="k2"), tenant(user="ann"), tenant(user="k1")}) == 5
    assert not any(secret in tenant(key="k-secret") for secret in ("k-secret", "Bearer"))
    assert "ann@example.org" not in tenant(user="ann@example.org")


def test_a_full_line_is_shared_among_keys(tmp_path: Path) -> None:
    site = Site(*open_local(tmp_path, max_running=1, max_queued=3))
    admission = site.engines.engines["tiny"]._admission

    def ask(key: str) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        return site.client.post(GENERATIONS, json={"prompt": "red apple"}, headers=headers)

    with site.client, ThreadPoolExecutor(4) as pool:
        with admission.place(None):
            greedy = []
            for i in range(3):
                greedy.append(pool.submit(ask, "greedy"))
                until(lambda i=i: admission.queued > i)  # type: ignore[misc]
            assert fault(ask("greedy"), 429)["message"] == "3 requests wait already"
            other = pool.submit(ask, "other")
            refused = greedy[2].result(10)
            assert fault(refused, 429)["type"] == "rate_limit_error"
            assert refused.headers["retry-after"] == "1"
        assert [answer.result(10).status_code for answer in (*greedy[:2], other)] == [200] * 3


# -- faults of others ----------------------------------------------------------------------------------------


def test_overload_becomes_429_with_retry_after(site: Site) -> None:
    site.engines.fault = OverloadedError("256 requests wait already", retry_after_s=2.4)
    response = site.generate()
    assert fault(response, 429)["type"] == "rate_limit_error"
    assert response.headers["retry-after"] == "3"


def test_dead_hub_is_503_for_new_names_only(site: Site) -> None:
    site.shelf.put(facts("alice/ink"))
    assert site.generate(model="alice/ink").status_code == 200
    site.shelf.fault = UnavailableError("cannot reach the hub", hint="start it")
    assert site.generate(model="alice/ink").status_code == 200
    error = fault(site.generate(model="alice/new"), 503)
    assert (error["code"], error["hint"]) == ("unavailable", "start it")


def test_a_request_out_of_time_is_504(site: Site) -> None:
    site.engines.fault = TimeoutError("the request's time is up")
    assert fault(site.generate(), 504)["code"] == "timeout"


def test_a_bug_is_told_to_the_log_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.engines.fault = RuntimeError("secret path /srv/weights")
    with caplog.at_level(logging.ERROR):
        error = fault(site.generate(), 500)
    assert "secret" not in error["message"]
    assert error["request_id"] in error["message"]
    assert error["request_id"] in caplog.text
    assert "secret path /srv/weights" in caplog.text
    site.engines.fault = None
    assert site.generate().status_code == 200


def test_request_ids_are_kept_when_sane(site: Site) -> None:
    for asked, kept in (("abc-123", True), ("x" * 65, False), ("a b", False)):
        answer = site.client.get("/healthz", headers={"x-request-id": asked})
        assert (answer.headers["x-request-id"] == asked) is kept


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nonesuch", 404, "route_not_found"), ("GET", GENERATIONS, 405, "method_not_allowed")],
)
def test_wrong_routes_are_openai_shaped_too(
    site: Site, method: str, path: str, status: int, code: str
) -> None:
    error = fault(site.client.request(method, path), status)
    assert error["code"] == code
    assert (path in error["message"]) is (status == 404)


# -- segmentations -------------------------------------------------------------------------------------------


def segment(site: Site, how: str, image: bytes = png(), **fields: str) -> Any:
    if how == "json":
        text = base64.b64encode(image).decode()
        return site.client.post(SEGMENTATIONS, json={"image": text} | fields)
    return site.client.post(SEGMENTATIONS, files={"image": ("x.png", image)}, data=fields)


def decoded(text: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("how", ["json", "form"])
def test_masks(site: Site, how: str) -> None:
    site.shelf.put(facts("dave/pets", "acme/tiny-seg"))
    answer = segment(site, how, model="dave/pets")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [(item["label"], item["share"], item["score"]) for item in body["data"]] == [
        ("dark", 0.5, 1.0),
        ("bright", 0.5, 1.0),
    ]
    assert decoded(body["data"][0]["mask"]).tolist() == [[0] * 4 + [255] * 4] * 8  # the adapter swaps them
    assert body["hubctl"]["base"] == "tiny-seg"
    assert body["hubctl"]["adapters"][0]["id"] == "dave/pets"
    assert "image" not in body


@pytest.mark.parametrize("how", ["json", "form"])
def test_overlay_and_labels(site: Site, how: str) -> None:
    overlay = segment(site, how, output="overlay").json()
    assert decoded(overlay["image"]).shape == (8, 8, 3)
    assert "mask" not in overlay["data"][0]
    labels = segment(site, how, output="labels").json()
    assert decoded(labels["image"]).tolist() == [[0] * 4 + [1] * 4] * 8


@pytest.mark.parametrize("how", ["json", "form"])
@pytest.mark.parametrize(
    ("image", "fields", "status", "param", "words"),
    [
        (b"nothing", {}, 400, "image", "not a readable"),
        (png()[:50], {}, 400, "image", "not a readable"),
        (png(), {"output": "rle"}, 400, "output", "'masks', 'overlay' or 'labels'"),
        (png(), {"colour": "red"}, 400, "colour", "unknown field"),
        (png(), {"model": "tiny"}, 400, "model", "tiny does text-to-image"),
        (png(), {"model": "alice/ghost"}, 404, None, "no repository"),
    ],
)
def test_segmentation_refusals(
    site: Site, how: str, image: bytes, fields: dict[str, str], status: int, param: str | None, words: str
) -> None:
    error = fault(segment(site, how, image, **fields), status)
    assert error["param"] == param
    assert words in error["message"]


def test_segmentation_bodies_of_other_shapes(site: Site) -> None:
    post = site.client.post
    assert "content type" in fault(post(SEGMENTATIONS, content=b"x"), 400)["message"]
    assert "'image' is missing" in fault(post(SEGMENTATIONS, json={}), 400)["message"]
    assert (
        "carries it as a file" in fault(post(SEGMENTATIONS, files={"image": (None, b"text")}), 400)["message"]
    )
    assert fault(post(SEGMENTATIONS, files={"output": (None, b"masks")}), 400)["param"] == "image"
    twice = [("image", ("a.png", png())), ("image", ("b.png", png()))]
    assert "given twice" in fault(post(SEGMENTATIONS, files=twice), 400)["message"]
    assert "not base64" in fault(post(SEGMENTATIONS, json={"image": "*"}), 400)["message"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    fault(post(SEGMENTATIONS, content=b"--y\r\n", headers=broken), 400)


def test_image_larger_than_allowed(tmp_path: Path) -> None:
    config, engines = open_local(tmp_path)
    site = Site(with_limits(config, max_input_pixels=63), engines)
    with site.client:
        assert "8 x 8 pixels; this server takes 63" in fault(segment(site, "form"), 400)["message"]


# -- the rest ------------------------------------------------------------------------------------------------


def test_models(site: Site) -> None:
    site.shelf.put(facts("alice/ink"), facts("carol/other", "acme/huge"))
    site.generate(model="alice/ink")
    listed = site.client.get("/v1/models").json()
    assert [(m["id"], m["hubctl"]["kind"]) for m in listed["data"]] == [
        ("tiny", "base"),
        ("tiny-seg", "base"),
        ("alice/ink", "adapter"),
    ]
    assert all(m["object"] == "model" and m["created"] > 0 for m in listed["data"])
    assert site.client.get("/v1/models/acme/tiny").json()["id"] == "tiny"
    about = site.client.get("/v1/models/alice/ink@main").json()["hubctl"]
    assert (about["base"], about["served"], about["revision"]) == ("tiny", True, "c" * 40)
    assert site.client.get("/v1/models/carol/other").json()["hubctl"]["served"] is False
    assert "no model" in fault(site.client.get("/v1/models/nonesuch"), 404)["message"]
    fault(site.client.get("/v1/models/alice/ghost"), 404)


def test_no_path_of_the_server_is_told(site: Site, tmp_path: Path) -> None:
    for response in (site.client.get("/v1/models"), site.generate(), segment(site, "json")):
        assert str(tmp_path) not in response.text


def test_health_and_readiness(site: Site) -> None:
    assert site.client.get("/healthz").json() == {"status": "ok"}
    assert site.client.get("/readyz").status_code == 200
    site.engines.down.add("tiny-seg")
    state = site.client.get("/readyz")
    assert (state.status_code, state.json()["waiting_for"]) == (503, ["tiny-seg"])


def test_a_base_that_starts_is_503_until_it_answers(tmp_path: Path) -> None:
    config, engines = open_local(tmp_path)
    engines.down.add("tiny")
    site = Site(config, engines)
    with site.client:
        assert "tiny is still starting" in fault(site.generate(), 503)["message"]
        engines.down.clear()
        assert site.generate().status_code == 200


def test_metrics_name_routes_and_bases_but_no_adapters(site: Site) -> None:
    site.shelf.put(facts("alice/ink"))
    site.generate(model="alice/ink", n=3)
    site.generate(n=0)
    site.client.get("/some/probe")
    text = site.client.get("/metrics").text
    assert f'hubctl_requests_total{{route="{GENERATIONS}",status="200"}} 1.0' in text
    assert f'hubctl_requests_total{{route="{GENERATIONS}",status="400"}} 1.0' in text
    assert 'hubctl_requests_total{route="other",status="404"} 1.0' in text
    assert "hubctl_images_total 3.0" in text
    assert 'hubctl_base_ready{base="tiny"} 1.0' in text
    assert "alice" not in text
    assert "apple" not in text


def test_openapi_describes_both_routes(site: Site) -> None:
    paths = site.client.get("/openapi.json").json()["paths"]
    assert "requestBody" in paths[GENERATIONS]["post"]
    forms = paths[SEGMENTATIONS]["post"]["requestBody"]["content"]
    assert forms.keys() == {"multipart/form-data", "application/json"}


def test_openapi_declares_null_where_the_parser_takes_it(site: Site) -> None:
    document = site.client.get("/openapi.json").json()
    parts = document["components"]["schemas"]
    form = document["paths"][SEGMENTATIONS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    least: dict[type[BaseModel], tuple[dict[str, Any], dict[str, str]]] = {
        GenerationBody: (parts["GenerationBody"], {"prompt": "a"}),
        LoraBody: (parts["LoraBody"], {"id": "a/b"}),
        SegmentationBody: (form, {"image": "x"}),
    }
    for body, (declared, fields) in least.items():
        assert declared["properties"].keys() == body.model_fields.keys()
        for name, field in declared["properties"].items():
            try:
                body.model_validate({**fields, name: None})
            except ValidationError:
                taken = False
            else:
                taken = True
            assert ({"type": "null"} in field.get("anyOf", [])) == taken, name


def test_many_at_once(tmp_path: Path) -> None:
    config, engines = open_local(tmp_path)
    shelf = Shelf()
    shelf.put(*(facts(f"user{i}/ink") for i in range(8)))
    app = create_app(config, engines, shelf.lookup)

    async def work() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            bodies = [{"prompt": "x", "seed": i, "model": f"user{i % 8}/ink"} for i in range(64)]
            return await asyncio.gather(*(client.post(GENERATIONS, json=body) for body in bodies))

    answers = asyncio.run(work())
    assert [answer.status_code for answer in answers] == [200] * 64
    assert [answer.json()["hubctl"]["seed"] for answer in answers] == list(range(64))
    assert [a.json()["hubctl"]["adapters"][0]["id"] for a in answers] == [
        f"user{i % 8}/ink" for i in range(64)
    ]
    assert len(shelf.asked) == 8


def with_limits(config: ServeConfig, **limits: float) -> ServeConfig:
    from dataclasses import replace

    return replace(config, limits=Limits(**limits))  # type: ignore[arg-type]
