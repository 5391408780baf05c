"""Remotes by name, and tokens that stay with their endpoint."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hubctl.errors import ConflictError, InputError, NotFoundError
from hubctl.hub import remotes, tokens
from hubctl.settings import Environment

URL = "http://127.0.0.1:8765"
SECRET = "hubctl_a-very-secret-token"


def env(home: Path, **changes: str | None) -> Environment:
    values: dict[str, str | None] = {"endpoint": None, "endpoint_token": None, "token": None, **changes}
    return Environment(home=home, cache=home / "cache", cache_quota=None, **values)


def test_hf_is_built_in_and_current_at_first(home: Path) -> None:
    (only,) = remotes.list_remotes(home)
    assert (only.name, only.url, only.current, only.logged_in) == ("hf", tokens.HF_URL, True, False)
    assert not home.exists(), "looking writes nothing"


def test_add_use_remove(home: Path) -> None:
    remotes.add_remote(home, "local", URL + "/")
    assert [r.name for r in remotes.list_remotes(home) if r.current] == ["hf"]
    remotes.use_remote(home, "local")
    tokens.save_token(home, URL, SECRET, "alice")
    (current,) = (r for r in remotes.list_remotes(home) if r.current)
    assert (current.name, current.url, current.logged_in) == ("local", URL, True)
    remotes.remove_remote(home, "local")
    (only,) = remotes.list_remotes(home)
    assert only.current
    assert SECRET not in (home / "tokens.toml").read_text(), "the token goes with the last name for its URL"


def test_adding_the_same_again_is_fine_and_another_url_is_not(home: Path) -> None:
    remotes.add_remote(home, "local", URL)
    remotes.add_remote(home, "local", URL)
    with pytest.raises(ConflictError, match=r"'local' is http://127\.0\.0\.1:8765 already"):
        remotes.add_remote(home, "local", "http://127.0.0.1:1")
    with pytest.raises(ConflictError):
        remotes.add_remote(home, "hf", URL)
    with pytest.raises(InputError):
        remotes.remove_remote(home, "hf")


def test_an_unknown_remote_names_the_known(home: Path) -> None:
    remotes.add_remote(home, "local", URL)
    with pytest.raises(NotFoundError) as caught:
        remotes.connect("lokal", env=env(home))
    assert "hf, local" in str(caught.value.hint)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://h",
        "127.0.0.1:80",
        "http://",
        "http://h/?q=1",
        "http://h/#f",
        "http://h:99999",
        "http://[::1",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(InputError):
        remotes.normal_url(url)


def test_a_url_with_credentials_is_refused_without_repeating_them() -> None:
    with pytest.raises(InputError) as caught:
        remotes.normal_url("https://alice:s3cret@hub.example.org")
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://LocalHost:80/", "http://localhost"),
        ("https://h.example:443/hub/", "https://h.example/hub"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_one_endpoint_has_one_spelling(url: str, normal: str) -> None:
    assert remotes.normal_url(url) == normal


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a.b", 'x"', "ü"])
def test_malformed_names(home: Path, name: str) -> None:
    with pytest.raises(InputError):
        remotes.add_remote(home, name, URL)


def test_files_are_for_this_user_alone_and_leave_no_drafts(home: Path) -> None:
    remotes.add_remote(home, "local", URL)
    tokens.save_token(home, URL, SECRET, "alice")
    for file in home.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert {file.name for file in home.iterdir()} == {"remotes.toml", "tokens.toml"}


def test_the_choice_of_registry(home: Path) -> None:
    remotes.add_remote(home, "local", URL)
    other = "http://127.0.0.1:9999"
    assert remotes.connect(env=env(home)).endpoint == tokens.HF_URL
    remotes.use_remote(home, "local")
    assert remotes.connect(env=env(home)).name == "local"
    hub = remotes.connect(env=env(home, endpoint=other))
    assert (hub.endpoint, hub.name) == (other, "127.0.0.1:9999")
    assert remotes.connect("local", env=env(home, endpoint=other)).endpoint == URL
    assert remotes.connect(env=env(home, endpoint=URL + "/")).name == "local", "a known URL keeps its name"


def test_a_token_is_only_sent_to_the_endpoint_it_belongs_to(home: Path) -> None:
    other = "http://127.0.0.1:9999"
    remotes.add_remote(home, "local", URL)
    tokens.save_token(home, URL, "stored-for-local", "alice")
    assert remotes.connect("local", env=env(home)).token == "stored-for-local"
    # HF_TOKEN belongs to HF_ENDPOINT, or to huggingface.co.
    with_hf = env(home, endpoint=other, endpoint_token="for-other")
    assert remotes.connect(env=with_hf).token == "for-other"
    assert remotes.connect("local", env=with_hf).token == "stored-for-local"
    assert remotes.connect("hf", env=with_hf).token is None
    assert remotes.connect("hf", env=env(home, endpoint_token="for-hf")).token == "for-hf"
    assert remotes.connect("local", env=env(home, endpoint_token="for-hf")).token == "stored-for-local"
    # HUBCTL_TOKEN goes wherever this command goes.
    assert remotes.connect("local", env=env(home, token="anything")).token == "anything"
    # The same name for another URL inherits nothing.
    remotes.remove_remote(home, "local")
    remotes.add_remote(home, "local", other)
    assert remotes.connect("local", env=env(home)).token is None


def test_no_token_in_any_repr(home: Path) -> None:
    tokens.save_token(home, URL, SECRET, "alice")
    remotes.add_remote(home, "local", URL)
    hub = remotes.connect("local", env=env(home, token=SECRET))
    assert hub.token == SECRET
    assert SECRET not in repr(hub) + str(hub) + repr(env(home, token=SECRET, endpoint_token=SECRET))


@pytest.mark.parametrize("text", ["", "  ", "abc", "two words here", "tokenwithünicode", "x" * 5000])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InputError) as caught:
        tokens.clean_token(text)
    assert not text.strip() or text.strip() not in str(caught.value)


def test_a_variable_that_is_no_token_is_named_and_not_shown(home: Path) -> None:
    remotes.add_remote(home, "local", URL, use=True)
    assert remotes.connect(env=env(home, token=f" {SECRET}\n")).token == SECRET
    with_hf = env(home, endpoint=URL, endpoint_token=f"{SECRET}\r\n")
    assert remotes.connect(env=with_hf).token == SECRET
    for name, wrong in (("HUBCTL_TOKEN", "token"), ("HF_TOKEN", "endpoint_token")):
        for text in (f"{SECRET}\nmore", f"{SECRET}ü", f"{SECRET}\udcfc", " "):
            with pytest.raises(InputError, match=name) as caught:
                remotes.connect(env=env(home, **{"endpoint": URL, wrong: text}))
            assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_a_damaged_file_is_named(home: Path) -> None:
    home.mkdir()
    (home / "remotes.toml").write_text('curent = "x"\n')
    with pytest.raises(InputError, match=r"remotes\.toml: unknown setting 'curent'"):
        remotes.list_remotes(home)


def test_tokens_that_cannot_be_read_are_not_thrown_away(home: Path) -> None:
    (home / "tokens.toml").mkdir(parents=True)  # no file of anybody's: root too cannot read it
    with pytest.raises(InputError, match=r"cannot read .*tokens\.toml: Is a directory") as caught:
        tokens.stored_token(home, URL)
    assert caught.value.hint is None


def test_a_home_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*remotes\.toml: Not a directory") as caught:
        remotes.add_remote(tmp_path / "file" / "home", "local", URL)
    assert "HUBCTL_HOME" in str(caught.value.hint)


def test_a_login_to_huggingface_is_one_login_for_both_tools(home: Path) -> None:
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils._auth import get_stored_tokens

    stored = Path(constants.HF_TOKEN_PATH)
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_text("hf_from-the-other-tool\n")
    remotes.add_remote(home, "local", URL)
    assert remotes.connect("hf", env=env(home)).token == "hf_from-the-other-tool"
    assert remotes.connect("local", env=env(home)).token is None

    tokens.save_token(home, tokens.HF_URL, "hf_from-hubctl", "alice")
    tokens.save_token(home, URL, SECRET, "alice")
    assert get_token() == remotes.connect("hf", env=env(home)).token == "hf_from-hubctl"
    assert [one.logged_in for one in remotes.list_remotes(home)] == [True, True]
    assert SECRET not in get_stored_tokens().values(), "another registry's token must not get there"
    assert "hf_from-hubctl" not in (home / "tokens.toml").read_text()

    assert tokens.forget_token(home, tokens.HF_URL)
    assert get_token() is None
    assert "hf_from-hubctl" not in get_stored_tokens().values()
    assert remotes.connect("hf", env=env(home)).token is None
    assert not tokens.forget_token(home, tokens.HF_URL)
    assert remotes.connect("local", env=env(home)).token == SECRET
