from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from hubctl.adapter.card import MAX_HEADER_BYTES, Card, Sample, read_card_data, render_card
from hubctl.errors import AdapterError
from serve.schema import GenerationBody, SegmentationBody

STYLE = Card(
    title="line-art",
    base_model="hubctl/emoji-64",
    task="text-to-image",
    library="diffusers",
    summary="Black line drawings.",
    settings={"rank": 8, "targets": "to_q | to_k", "learning_rate": 1e-4},
    metrics={"style_hit_rate": 0.95123456},
    instance_prompt="line style",
    license="cc-by-sa-4.0",
    samples=[Sample(text="it's a red apple", file="samples/0.png")],
    pictures=["loss.png"],
)
TRIMAP = Card(
    title="pets", base_model="hubctl/emoji-64-seg", task="image-segmentation", library="peft", summary="Pets."
)


def test_the_hub_s_own_reader_understands_the_card() -> None:
    metadata: Any = ModelCard(render_card(STYLE)).data
    data = metadata.to_dict()
    assert metadata.base_model == "hubctl/emoji-64"
    assert data["base_model_relation"] == "adapter"
    assert metadata.pipeline_tag == "text-to-image"
    assert metadata.library_name == "diffusers"
    assert metadata.license == "cc-by-sa-4.0"
    assert metadata.tags == ["text-to-image", "lora", "hubctl", "diffusers"]
    assert data["instance_prompt"] == "line style"
    assert data["widget"] == [{"text": "it's a red apple", "output": {"url": "samples/0.png"}}]
    (result,) = metadata.eval_results or []
    assert (result.metric_type, result.metric_value) == ("style_hit_rate", 0.9512)


def test_the_text_says_what_to_type() -> None:
    text = render_card(STYLE)
    command = next(line for line in text.splitlines() if line.startswith("hubctl generate"))
    assert shlex.split(command) == ["hubctl", "generate", "it's a red apple", "--adapter", "OWNER/line-art"]
    assert "| targets | to_q &#124; to_k |" in text
    assert "| learning_rate | 0.0001 |" in text
    assert "![loss](loss.png)" in text
    assert "hubctl segment photo.png --adapter OWNER/pets" in render_card(TRIMAP)


def curl(card: Card) -> list[str]:
    """The words of the card's curl command, up to the pipe."""
    block = next(b for b in render_card(card).split("```sh\n")[1:] if b.startswith("curl"))
    return shlex.split(block.partition("|")[0].replace("\\\n", " "))


def test_the_server_understands_the_curl_in_the_card() -> None:
    words = curl(STYLE)
    assert words[2] == "http://127.0.0.1:8000/v1/images/generations"
    body = GenerationBody.model_validate_json(words[words.index("-d") + 1])
    assert (body.model, body.prompt) == ("OWNER/line-art", "it's a red apple")
    words = curl(TRIMAP)
    assert words[2] == "http://127.0.0.1:8000/v1/images/segmentations"
    form = dict(word.split("=", 1) for flag, word in itertools.pairwise(words) if flag == "-F")
    assert form.pop("image") == "@photo.png"
    assert SegmentationBody(image="", **form).model == "OWNER/pets"  # type: ignore[arg-type]


@pytest.mark.parametrize("card", [STYLE, TRIMAP], ids=["style", "trimap"])
def test_the_python_in_the_card_compiles(card: Card) -> None:
    code = render_card(card).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40)


@given(printable.filter(bool), printable)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, base: str, prompt: str
) -> None:
    folder = tmp_path_factory.mktemp("c")
    card = Card(
        title="t",
        base_model=base,
        task="text-to-image",
        library="diffusers",
        summary="s",
        instance_prompt=prompt,
    )
    (folder / "README.md").write_text(render_card(card), encoding="utf-8")
    data = read_card_data(folder)
    assert data["base_model"] == base
    assert data.get("instance_prompt", "") == prompt


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (None, {}),
        (b"", {}),
        (b"# only text", {}),
        (b"---\nbase_model: a/b", {}),
        (b"---\n- a\n---\n", {}),
        (b"---\nbase_model: a/b\n---\n", {"base_model": "a/b"}),
        (b"\xef\xbb\xbf---\r\nbase_model: a/b\r\n---\r\ntext", {"base_model": "a/b"}),
        (b"---\nbase_model: a/b\n---\n\xff\xfe", {"base_model": "a/b"}),
    ],
)
def test_cards_of_others_are_read(tmp_path: Path, content: bytes | None, data: dict[str, Any]) -> None:
    if content is not None:
        (tmp_path / "README.md").write_bytes(content)
    assert read_card_data(tmp_path) == data


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: " + "[" * 200_000, "nested more than 32 deep"),
        ("".join(" " * n + "a:\n" for n in range(40)), "nested more than 32 deep"),
        ("a: 2024-99-99", "not valid YAML"),
        ('a: !!int ""', "not valid YAML"),
        ('a: !!float ""', "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!timestamp foo", "not valid YAML"),
        ("a: &x [1]\nb: *x", "uses YAML aliases"),
        ("a: " + "x" * MAX_HEADER_BYTES, "characters (limit 262,144)"),
    ],
)
def test_harmful_headers_are_refused(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(AdapterError) as caught:
        read_card_data(tmp_path)
    assert message in caught.value.message
