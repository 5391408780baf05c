from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from hubctl.errors import InputError
from hubctl.hub.lock import Locked, LockFile
from serve.config import (
    BaseConfig,
    Limits,
    ServeConfig,
    config_from_args,
    config_to_args,
    load_config,
    share_cpus,
    share_gpus,
)
from serve.engine.config import EngineConfig

FULL = """
host = "0.0.0.0"
port = 9000
remote = "work"

[limits]
max_steps = 50

[[bases]]
ref = "emoji-64"
max_replicas = 3

[bases.engine]
device = "cpu"
total_rows = 64
controlnets = { lines = "/models/lines" }

[[bases]]
ref = "acme/sdxl@v1"
aliases = ["mirror/sdxl"]
num_gpus = 1
"""


def locked(commit: str) -> Locked:
    return Locked(revision="main", commit=commit, weights="w", rank=(4,), files={"w": "b" * 64})


def test_toml_becomes_settings(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(FULL)
    config = load_config(tmp_path / "serve.toml")
    assert [base.name for base in config.bases] == ["emoji-64", "sdxl"]
    engine = EngineConfig(device="cpu", total_rows=64, controlnets={"lines": "/models/lines"})
    assert config.bases[0].engine == engine
    assert config.bases[1].num_gpus == 1.0
    assert (config.limits.max_steps, config.limits.max_images) == (50, Limits().max_images)
    assert pickle.loads(pickle.dumps(config)) == config


def test_args_of_a_serve_config_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(FULL)
    config = load_config(tmp_path / "serve.toml")
    args = config_to_args(config)
    assert config_from_args(args) == config
    assert "ray_address" not in args
    assert args["limits"] == {"max_steps": 50}


@pytest.mark.parametrize("adapters", [{}, {"alice/x": locked("a" * 40)}])
def test_a_lock_reaches_the_cluster(adapters: dict[str, Locked]) -> None:
    config = ServeConfig(bases=(BaseConfig(ref="a"),), locked=LockFile(adapters=adapters))
    assert config_from_args(json.loads(json.dumps(config_to_args(config)))) == config


def test_a_replica_takes_what_its_engine_can_hold_and_refuse() -> None:
    engine = EngineConfig(max_running=4, max_queued=10)
    assert BaseConfig(ref="a", engine=engine).ongoing_requests == 4 + 10 + 4
    assert BaseConfig(ref="a", engine=engine, max_ongoing_requests=6).ongoing_requests == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bases = []", "no base model to serve"),
        ("", "'bases' is missing"),
        ('prot = 1\n[[bases]]\nref = "a"', "unknown setting 'prot'"),
        ('[[bases]]\nref = "a"\n[bases.engine]\nrows = 1', "unknown setting 'rows'"),
        ('[[bases]]\nref = "a"\n[[bases]]\nref = "b/a"', "two bases are called 'a'"),
        ('[[bases]]\nref = "a"\n[[bases]]\nref = "b"\naliases = ["a"]', "which is another base's name"),
        ('[limits]\ntimeout_s = inf\n[[bases]]\nref = "a"', "timeout_s is inf"),
        ('[[bases]]\nref = "a"\nnum_cpus = nan', "num_cpus is nan"),
        ('[[bases]]\nref = "a"\nmin_replicas = 2', "2 to 1 replicas is no range"),
        ('[[bases]]\nref = "a"\nmax_replicas = 0', "is no range"),
        ('[[bases]]\nref = "a"\nmax_ongoing_requests = 0', "max_ongoing_requests is 0"),
        ('[[bases]]\nref = "a"\nnum_gpus = -1', "cannot be negative"),
        ('[[bases]]\nref = "../.."', "'..' cannot name a base"),
        ('port = 70000\n[[bases]]\nref = "a"', "port 70000"),
        ('[limits]\nmax_steps = 0\n[[bases]]\nref = "a"', "max_steps is 0"),
        ('resolve_ttl_s = -1\n[[bases]]\nref = "a"', "cannot be negative"),
        ("port = ", "not valid TOML"),
    ],
)
def test_refusals(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "serve.toml")
    assert words in caught.value.message


def test_one_model_is_served_twice_under_two_names() -> None:
    """`aliases` as `serve.preflight` adds them: the folder, as it was typed."""
    twice = [BaseConfig(ref="/models/a", name=name, aliases=("a",)) for name in ("a", "a-int8")]
    assert ServeConfig(bases=tuple(twice))


@pytest.mark.parametrize(
    ("gpus", "bases", "expected"),
    [
        (0, [{}], [0.0]),
        (1, [{}], [1.0]),
        (1, [{"max_replicas": 3}], [0.333]),
        (1, [{}, {}], [0.5, 0.5]),
        (8, [{"max_replicas": 2}], [1.0]),
        (2, [{"num_gpus": 1.5}, {}], [1.5, 0.5]),
        (1, [{"num_gpus": 0.5, "max_replicas": 4}, {}], [0.5, 0.0]),
        (1, [{"num_gpus": 0.25}], [0.25]),
    ],
)
def test_gpus_are_shared(gpus: float, bases: list[dict[str, Any]], expected: list[float]) -> None:
    config = ServeConfig(bases=tuple(BaseConfig(ref=f"base{i}", **b) for i, b in enumerate(bases)))
    assert [base.num_gpus for base in share_gpus(config, gpus).bases] == expected


def test_more_gpus_than_there_are_is_said_at_once() -> None:
    config = ServeConfig(bases=(BaseConfig(ref="a", num_gpus=0.25), BaseConfig(ref="b")))
    with pytest.raises(InputError, match=r"ask for 0.25 GPUs, this machine has 0"):
        share_gpus(config, 0)


@pytest.mark.parametrize(
    ("max_replicas", "num_cpus", "expected"),
    [(1, None, 8), (2, None, 4), (16, None, 1), (2, 0.5, 0.5), (1, 0.0, 0.0)],
)
def test_replicas_of_a_base_share_the_cpus(
    max_replicas: int, num_cpus: float | None, expected: float
) -> None:
    base = BaseConfig(ref="emoji-64", max_replicas=max_replicas, num_cpus=num_cpus)
    other = BaseConfig(ref="emoji-64-seg")
    shared = share_cpus(ServeConfig(bases=(base, other)), 8)
    assert [base.num_cpus for base in shared.bases] == [expected, 8]
