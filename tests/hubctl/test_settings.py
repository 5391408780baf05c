from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.errors import InputError
from hubctl.settings import Environment, child_environment, environment, from_mapping, load_toml


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    rows: int = 64
    dtype: Literal["auto", "fp16"] = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    port: int
    timeout_s: float = 30.0
    root: Path | None = None
    public: bool = False
    bases: tuple[str, ...] = ()
    engine: Engine = field(default_factory=Engine)
    engines: tuple[Engine, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    extra: Any = None


def load(tmp_path: Path, text: str) -> Server:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    return load_toml(path, Server)


def test_a_whole_file(tmp_path: Path) -> None:
    text = """
    port = 8000
    timeout_s = 5
    root = "~/adapters"
    public = true
    bases = ["emoji-64", "alice/base"]
    extra = [1, "two"]
    limits = { alice = 3 }
    [engine]
    rows = 128
    dtype = "fp16"
    [[engines]]
    rows = 1
    [[engines]]
    """
    assert load(tmp_path, text) == Server(
        port=8000,
        timeout_s=5.0,
        root=Path.home() / "adapters",
        public=True,
        bases=("emoji-64", "alice/base"),
        engine=Engine(rows=128, dtype="fp16"),
        engines=(Engine(rows=1), Engine()),
        limits={"alice": 3.0},
        extra=[1, "two"],
    )


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("prt = 1", "unknown setting 'prt'", "did you mean 'port'?"),
        ("zzzzzz = 1", "unknown setting 'zzzzzz'", "known settings: bases"),
        ("port = 1\n[engine]\nrowz = 2", "engine: unknown setting 'rowz'", "did you mean 'rows'?"),
        ("", "setting 'port' is missing", "port = ..."),
        ("port = '1'", "port is int, not str ('1')", None),
        ("port = true", "port is int, not bool", None),
        ("port = 1.0", "port is int, not float", None),
        ("port = 1\ntimeout_s = true", "timeout_s is float, not bool", None),
        ("port = 1\nbases = 'x'", "bases is a list, not str", None),
        ("port = 1\nbases = [1]", "bases[0] is str, not int", None),
        ("port = 1\nengine = 1", "engine is a table, not int", None),
        ("port = 1\nlimits = 1", "limits is a table, not int", None),
        ("port = 1\nlimits = {a = 'b'}", "limits.a is float, not str", None),
        ("port = 1\n[engine]\ndtype = 'int3'", "engine: dtype is 'int3'", "use one of auto, fp16"),
        ("port = ", "is not valid TOML", None),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert message in caught.value.message
    assert "serve.toml" in caught.value.message
    assert (hint or "") in (caught.value.hint or "")


def test_unreadable_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_toml(tmp_path / "none.toml", Server)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        load_toml(tmp_path / "latin.toml", Server)


def test_null_is_for_optional_fields_only() -> None:
    assert from_mapping(Server, {"port": 1, "root": None}, where="x").root is None
    with pytest.raises(InputError, match="port is int, not NoneType"):
        from_mapping(Server, {"port": None}, where="x")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Server.__dataclass_fields__, "odd"]), values))
def test_any_values_are_taken_or_refused(data: dict[str, Any]) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(from_mapping(Server, data, where="x"), Server)


def seen_by_a_child(**variables: str) -> str:
    """What a fresh process with exactly these variables finds."""
    done = subprocess.run(
        [sys.executable, "-c", "from hubctl.settings import environment as e, no_color as n; x = e(); "
         "print(x.home, x.cache, x.endpoint, x.endpoint_token, x.token, n())"],
        env={"HOME": "/nowhere", "PATH": os.defpath, **variables}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_environment() -> None:
    assert seen_by_a_child() == "/nowhere/.hubctl /nowhere/.hubctl/cache None None None False"
    assert (
        seen_by_a_child(
            HUBCTL_HOME="~/x",
            HUBCTL_CACHE="/c",
            HF_ENDPOINT="http://h",
            HF_TOKEN="a",
            HUBCTL_TOKEN="b",
            NO_COLOR="1",
        )
        == "/nowhere/x /c http://h a b True"
    )
    # A variable that is set but empty counts as unset.
    assert seen_by_a_child(HF_ENDPOINT="", HUBCTL_TOKEN="", NO_COLOR="").endswith(
        ".hubctl/cache None None None False"
    )


def test_tokens_are_not_shown() -> None:
    shown = repr(
        Environment(
            home=Path("h"),
            cache=Path("c"),
            cache_quota=None,
            endpoint=None,
            endpoint_token="s3cret",
            token="s3cret",
        )
    )
    assert "s3cret" not in shown
    assert "s3cret" not in repr(environment())


@pytest.mark.parametrize("name", ["HUBCTL_HOME", "HUBCTL_CACHE"])
def test_a_home_of_nobody_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "~no-such-account/x")
    with pytest.raises(InputError, match="~no-such-account/x leads nowhere") as caught:
        environment()
    assert name in str(caught.value.hint)


def test_child_environment_adds_to_ours() -> None:
    found = child_environment(HUBCTL_HOME="/elsewhere")
    assert found["HUBCTL_HOME"] == "/elsewhere"
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("text", "quota"), [("", None), ("20GB", 20 * 10**9), ("1.5 mb", 1_500_000), ("7", 7), ("0", 0)]
)
def test_the_quota_of_the_cache(text: str, quota: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBCTL_CACHE_QUOTA", text)
    assert environment().cache_quota == quota


@pytest.mark.parametrize("text", ["much", "20 GiB", "-1GB", "GB", "1e9"])
def test_a_quota_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBCTL_CACHE_QUOTA", text)
    with pytest.raises(InputError, match="HUBCTL_CACHE_QUOTA"):
        environment()
