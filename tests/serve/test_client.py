"""The client and its commands against the real routes over real HTTP; the engines are echo engines."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import hubctl.errors
from hubctl.cli.serve import generate
from hubctl.client import LoraChoice, Server, numbered
from hubctl.errors import (
    AccessError,
    DataError,
    DivergedError,
    HubctlError,
    InputError,
    OverloadedError,
    UnavailableError,
)
from serve.api import create_app
from serve.engine.schedulers import SCHEDULERS
from serve.schema import fault_body
from tests.cli import run_cli
from tests.serve.local import Shelf, facts, open_local, over_http
from tests.serve.test_schema import subclasses


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config, engines = open_local(tmp_path_factory.mktemp("bases"))
    shelf = Shelf()
    shelf.put(facts("alice/ink"), facts("dave/pets", "acme/tiny-seg"), facts("carol/other", "acme/huge"))
    with over_http(create_app(config, engines, shelf.lookup)) as address:
        yield address


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    data = np.zeros((16, 16, 3), dtype=np.uint8)
    data[:, 8:] = 255
    path = tmp_path / "cat.png"
    Image.fromarray(data).save(path)
    return path


def opened(path: str | Path) -> Image.Image:
    return Image.open(io.BytesIO(Path(path).read_bytes()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice/ink", LoraChoice("alice/ink")),
        ("alice/ink@v2", LoraChoice("alice/ink@v2")),
        ("alice/ink:0.5", LoraChoice("alice/ink", 0.5)),
        ("alice/ink@v2:-1", LoraChoice("alice/ink@v2", -1.0)),
    ],
)
def test_adapter_as_typed(text: str, expected: LoraChoice) -> None:
    assert LoraChoice.parse(text) == expected


@pytest.mark.parametrize("text", ["ink", "alice/ink:", "alice/ink:strong", "alice/ink@:1", "./ink", ""])
def test_adapter_typed_wrongly(text: str) -> None:
    with pytest.raises(InputError):
        LoraChoice.parse(text)


def test_names_for_several_images() -> None:
    assert numbered(Path("a/out.png"), 1) == [Path("a/out.png")]
    assert numbered(Path("a/out.png"), 2) == [Path("a/out-1.png"), Path("a/out-2.png")]


def test_every_fault_arrives_as_the_class_it_left_as() -> None:
    left = [cls for cls in subclasses(HubctlError) if cls.__module__ == hubctl.errors.__name__]
    errors = {cls.__name__: cls("what and where", hint="do this") for cls in left}
    errors["Forbidden"] = AccessError("no", forbidden=True)
    errors["Busy"] = OverloadedError("full", retry_after_s=7)
    errors["Paused"] = UnavailableError("the hub asks for a pause", retry_after_s=9)

    async def fail(request: Request) -> Response:
        status, headers, body = fault_body(errors[request.query_params["e"]], "id")
        return JSONResponse(body, status, headers)

    with over_http(Starlette(routes=[Route("/{any:path}", fail, methods=["GET"])])) as url:
        for name, error in errors.items():
            with pytest.raises(HubctlError) as caught:
                Server(f"{url}/x?e={name}&path=").models()
            # These are of trainings, which no server does.
            trainings = isinstance(error, DataError | DivergedError)
            assert type(caught.value) is (InputError if trainings else type(error))
            assert caught.value.hint == error.hint
            assert getattr(caught.value, "forbidden", None) == getattr(error, "forbidden", None)
            assert getattr(caught.value, "retry_after_s", None) == getattr(error, "retry_after_s", None)


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"object": "list"}', '{"data": 5}'])
@pytest.mark.parametrize("status", [200, 404, 500])
def test_something_else_at_that_address(answer: str, status: int) -> None:
    async def other(request: Request) -> Response:
        return PlainTextResponse(answer, status)

    with (
        over_http(Starlette(routes=[Route("/{any:path}", other)])) as url,
        pytest.raises(UnavailableError, match="not like a hubctl server"),
    ):
        Server(url).models()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:abc",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://127.0.0.1:8000/ü",
        "http://127.0.0.1:8000/a b",
        "127.0.0.1:8000",
        "ftp://127.0.0.1",
        "",
    ],
)
def test_what_is_no_url_is_not_asked(url: str) -> None:
    with pytest.raises(InputError, match="is not a server's URL"):
        Server(url).models()


def test_a_password_in_the_url_is_neither_asked_with_nor_shown() -> None:
    with pytest.raises(InputError, match="user or a password") as caught:
        Server("http://alice:s3cret@127.0.0.1:1").models()
    assert "s3cret" not in caught.value.message


def test_models(url: str) -> None:
    assert [model["id"] for model in Server(url).models()][:2] == ["tiny", "tiny-seg"]


def test_generate_writes_a_file_and_prints_its_path(url: str, tmp_path: Path) -> None:
    out = tmp_path / "apple.png"
    ran = run_cli(
        "generate", "red apple", "--adapter", "alice/ink:0.5", "--seed", "4", "--server", url, "-o", out
    )
    assert (ran.code, ran.out.strip()) == (0, str(out)), ran.err
    assert opened(out).size == (64, 64)
    assert f"alice/ink@{'c' * 12} x 0.5, seed 4" in ran.err
    assert not list(tmp_path.glob(".*.part"))


def test_schedulers_in_the_help_are_known() -> None:
    (option,) = (one for one in generate.params if one.name == "scheduler")
    assert isinstance(option, click.Option)
    named = str(option.help).removeprefix("For example ").removesuffix(".").split(", ")
    assert set(named) <= SCHEDULERS.keys()


def test_generate_many_as_json(url: str, tmp_path: Path) -> None:
    ran = run_cli(
        "generate", "x", "--n", "3", "--size", "32x16", "--server", url, "-o", tmp_path / "a.jpg", "--json"
    )
    answer = ran.json()
    assert [Path(p).name for p in answer["paths"]] == ["a-1.jpg", "a-2.jpg", "a-3.jpg"]
    assert {opened(p).format for p in answer["paths"]} == {"JPEG"}
    assert len(answer["hubctl"]["seeds"]) == 3


def test_segment_writes_overlay_and_masks(url: str, photo: Path, tmp_path: Path) -> None:
    ran = run_cli(
        "segment", photo, "--adapter", "dave/pets", "--masks", tmp_path / "masks", "--server", url, "-q"
    )
    assert ran.code == 0, ran.err
    assert ran.out.split() == [str(tmp_path / name) for name in ("cat-overlay.png", "masks/0-dark.png", "masks/1-bright.png")]  # fmt: skip  # noqa: E501
    assert opened(tmp_path / "cat-overlay.png").mode == "RGB"
    mask = np.asarray(opened(tmp_path / "masks/0-dark.png"))
    assert (mask[:, 8:] == 255).all()


def test_a_folder_for_masks_that_cannot_be_made_is_explained(url: str, photo: Path, tmp_path: Path) -> None:
    ran = run_cli("segment", photo, "--adapter", "dave/pets", "--masks", photo / "masks", "--server", url)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert f"cannot make the folder {photo / 'masks'}" in ran.err
    assert not list(tmp_path.glob("*overlay*"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["generate", "x", "--adapter", "alice/ghost"], 3, "no repository alice/ghost"),
        (
            ["generate", "x", "--adapter", "carol/other"],
            5,
            "trained for acme/huge, which this server does not run",
        ),
        (["generate", "x", "--adapter", "ink"], 2, "not a repository id"),
        (["generate", "x", "--size", "65x64"], 2, "multiples of 8"),
        (["generate", "x", "--steps", "100000"], 2, "this server allows 150"),
        (["generate", "x", "-o", "out.gif"], 2, "no PNG, JPEG or WebP"),
        (["generate", "x", "-o", "nowhere/out.png"], 2, "there is no folder nowhere"),
        (["segment", "nowhere.png"], 2, "cannot read nowhere.png"),
        (["segment", "note.txt", "-o", "o.png"], 2, "not a readable PNG"),
        (["segment", "note.txt", "--adapter", "a/b", "--model", "c"], 2, "--adapter and --model together"),
        (
            ["segment", "note.txt", "--adapter", "a/b:0.5"],
            2,
            "segmentation takes adapters at their full strength",
        ),
    ],
)
def test_faults_leave_one_line_and_no_file(
    url: str, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    (tmp_path / "note.txt").write_text("hello")
    ran = run_cli(*words, "--server", url, cwd=tmp_path)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert not [path.name for path in tmp_path.iterdir() if path.suffix != ".txt"]


def test_dead_server_says_how_to_start_one(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = closed.getsockname()[1]
        ran = run_cli("generate", "x", "--server", f"http://127.0.0.1:{port}", cwd=tmp_path)
    assert ran.code == 8
    assert f"no server at http://127.0.0.1:{port}" in ran.err
    assert f"hubctl serve --base emoji-64 --port {port}" in ran.err
    assert run_cli("generate", "x", "--server", "localhost:80", cwd=tmp_path).code == 2


# -- hubctl serve, as far as it goes before Ray starts -------------------------------------------------------


def test_port_in_use_is_said_before_ray_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = run_cli("serve", "--base", "emoji-64", "--port", str(port))
    assert ran.code == 7
    assert f"port {port} on 127.0.0.1 is in use" in ran.err
    assert f"--port {port + 1}" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--base", "nonesuch", "--port", "0"], 3, "no base model 'nonesuch'"),
        ([], 2, "no base model to serve"),
        (["--config", "nowhere.toml"], 2, "cannot read nowhere.toml"),
        (["--base", "emoji-64", "--host", "203.0.113.9"], 2, "cannot listen on 203.0.113.9"),
        (["--base", "emoji-64", "--remote", "ghost", "--port", "0"], 3, "no remote 'ghost'"),
    ],
)
def test_serve_refuses_at_once(words: list[str], code: int, message: str) -> None:
    ran = run_cli("serve", *words)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_serve_renders_flags_and_file_together(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('[[bases]]\nref = "emoji-64"\n')
    ran = run_cli(
        "serve", "--config", tmp_path / "serve.toml", "--base", "acme/big", "--replicas", "2",
        "--engine", "echo", "--render", "laptop",
    )  # fmt: skip
    import yaml

    args = yaml.safe_load(ran.out)["applications"][0]["args"]
    assert [(base["name"], base["max_replicas"], base["engine"]) for base in args["bases"]] == [
        ("emoji-64", 2, {"kind": "echo"}),
        ("big", 2, {"kind": "echo"}),
    ]
    assert json.dumps(args)
    asked = run_cli("serve", "--base", "emoji-64", "--render", "laptop", "--json").json()
    assert asked["target"] == "laptop"
    assert yaml.safe_load(asked["yaml"])["applications"]
