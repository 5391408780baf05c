"""Coverage-guided fuzzing, some seconds long: readers of strangers' bytes raise documented errors alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hubctl.adapter.raw import pair, weights
from tests.registry import xet_builder

pytest.importorskip("atheris", reason="there is none for this system")

SECONDS = 10
REPOSITORY = Path(__file__).parent.parent.parent


def header_seeds() -> list[bytes]:
    files = [weights(pair("unet.a")), weights({"a": (2, 3), "b": (0,)})]
    return [file[8 : 8 + int.from_bytes(file[:8], "little")] for file in files]


def xet_seeds() -> list[bytes]:
    chunks = [b"abcd" * 50, b"x" * 500]
    digest = "0123456789abcdef" * 4
    return [
        *(xet_builder.xorb(chunks, scheme=scheme)[1] for scheme in range(3)),
        xet_builder.xorb(chunks, scheme=2, footer=b"XETBLOB")[1],
        xet_builder.shard([(digest, [(digest, 9, 0, 1)] * 3)]),
    ]


@pytest.mark.parametrize(("target", "seeds"), [("header", header_seeds()), ("xet", xet_seeds())])
def test_no_other_error_comes_out(target: str, seeds: list[bytes], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={SECONDS}", "-timeout=5", "-rss_limit_mb=2048", "-max_len=4096"]
    options = [*limits, "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{target}", *options, str(corpus)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS * 6,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    runs, seconds = map(int, re.findall(r"Done (\d+) runs in (\d+) second", done.stderr)[-1])
    assert runs > 1000, (runs, seconds)
    assert len(list(corpus.iterdir())) > len(seeds), "nothing new was covered: is the reader instrumented?"
