"""What a README says about its repository."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubctl.errors import InputError
from hubctl.registry.card import read_card, read_front_matter

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_an_adapter_is_found_as_on_the_hub() -> None:
    readme = """---
base_model: [hubctl/emoji-64, other/base]
base_model_relation: adapter
library_name: diffusers
pipeline_tag: text-to-image
license: mit
language: en
datasets: [d/x]
tags: [lora, lora]
---
# Title
"""
    card = read_card(readme, ["README.md", "pytorch_lora_weights.safetensors"])
    assert card.tags == (
        "diffusers",
        "lora",
        "text-to-image",
        "safetensors",
        "en",
        "dataset:d/x",
        "base_model:hubctl/emoji-64",
        "base_model:adapter:hubctl/emoji-64",
        "base_model:other/base",
        "base_model:adapter:other/base",
        "license:mit",
    )
    assert (card.pipeline_tag, card.library_name) == ("text-to-image", "diffusers")


@pytest.mark.parametrize(
    ("readme", "paths", "relation"),
    [
        ("tags: [lora]", [], "adapter"),
        ("library_name: peft", [], "adapter"),
        ("{}", ["adapter_config.json"], "adapter"),
        ("{}", ["model.safetensors"], "finetune"),
    ],
)
def test_the_relation_is_inferred(readme: str, paths: list[str], relation: str) -> None:
    text = f"---\n{readme.replace('{}', 'a: 1')}\nbase_model: b/c\n---\n"
    assert f"base_model:{relation}:b/c" in read_card(text, paths).tags


@pytest.mark.parametrize(
    "readme", ["", "# no header", "---\n---\n", "text\n---\na: 1\n---\n", "---\nopen: 1\n"]
)
def test_no_header(readme: str) -> None:
    assert read_front_matter(readme) == {}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("a: [", "cannot be read"),
        ("- a list", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("a: &x [1]\nb: *x", "aliases are not allowed"),
        ("a: !!python/object:os.system {}", "cannot be read"),
        ("a: 2024-13-45", "impossible value"),
        ('a: !!int ""', "impossible value"),
        ('a: !!float ""', "impossible value"),
        ("a: !!bool maybe", "impossible value"),
        ("a: !!timestamp foo", "impossible value"),
        ("a: " + "[" * 5000 + "]" * 5000, "impossible value"),
        ("a: " + "x" * 300_000, "longer than"),
    ],
)
def test_bad_headers(header: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_front_matter(f"---\n{header}\n---\n")


def test_values_are_safe_for_json() -> None:
    header = 'd: 2024-01-02\nn: .nan\nb: 123456789012345678901234567890\ns: "\\uD800"\n1: {2: 3}\n'
    data = read_front_matter(f"---\r\n{header}---\r\n")
    assert data == {"d": "2024-01-02", "n": "nan", "b": 1.2345678901234568e29, "s": "?", "1": {"2": 3}}
    json.dumps(data, allow_nan=False).encode()


@PATIENT
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        card = read_card(f"---\n{text}\n---\n", ["a.safetensors"])
    except InputError:
        return
    json.dumps(card.data, allow_nan=False).encode()
