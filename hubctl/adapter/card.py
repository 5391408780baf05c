"""The model card of an adapter: README.md with the metadata that the Hub indexes.

Field names follow the Hub's model-card specification (huggingface/hub-docs, `modelcard.md`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubctl.adapter.new_tokens import TOKENIZERS, NewTokens
from hubctl.errors import AdapterError
from hubctl.families import Task

CARD = "README.md"
MAX_HEADER_BYTES = 256 << 10
MAX_HEADER_DEPTH = 32
SERVER = "http://127.0.0.1:8000"
"""Where `hubctl serve` listens if nothing else is said."""
_HEADER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A picture of the gallery: the prompt, and the file beside the card."""

    text: str
    file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What the card of an adapter says."""

    title: str
    base_model: str
    task: Task
    library: str
    """`diffusers` or `peft`: what loads it unaided."""
    summary: str
    settings: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    classes: int | None = None
    """Segmentation: how many; the base's head must be made for as many before peft fills it."""
    linear_head: bool = False
    """Segmentation: the base runs under `hubctl.modeling`'s linear head, which transformers does not know."""
    instance_prompt: str | None = None
    new_tokens: NewTokens | None = None
    """Words of its own, which diffusers loads apart from the weights."""
    license: str | None = None
    license_name: str | None = None
    """Of a licence that has no id of its own (`license: other`)."""
    samples: Sequence[Sample] = ()
    pictures: Sequence[str] = ()
    """Other image files to show: the loss curve, overlays."""


def render_card(card: Card) -> str:
    """The text of README.md."""
    import yaml

    tags = [card.task, "lora", "hubctl", *([card.library] if card.library == "diffusers" else [])]
    data: dict[str, Any] = {
        "base_model": card.base_model,
        "base_model_relation": "adapter",
        "library_name": card.library,
        "pipeline_tag": card.task,
        "tags": tags,
    }
    if card.license:
        data["license"] = card.license
    if card.license_name:
        data["license_name"] = card.license_name
    if card.instance_prompt:
        data["instance_prompt"] = card.instance_prompt
    if card.samples:
        data["widget"] = [{"text": s.text, "output": {"url": s.file}} for s in card.samples]
    if card.metrics:
        data["model-index"] = [
            {
                "name": card.title,
                "results": [_indexed(card.task, "held-out part of the training data", card.metrics)],
            }
        ]
    header = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{header}---", f"# {card.title}", card.summary]
    if card.samples:
        parts.append("<Gallery />")
    parts += [f"![{Path(name).stem}]({name})" for name in card.pictures]
    parts.append("## Use it\n\n" + _usage(card))
    if card.metrics:
        parts.append("## Figures\n\n" + _table(("metric", "value"), card.metrics))
    if card.settings:
        parts.append("## Settings\n\n" + _table(("setting", "value"), card.settings))
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Figures on one data set."""

    task: Task
    dataset: str
    metrics: Mapping[str, float]
    pictures: Sequence[str] = ()


def with_result(text: str, result: Result, *, name: str) -> str:
    """A card's text with the figures in its `model-index` and in a section of their own.

    Those of an earlier judgement on the same data set make room; all else stays. `name` is the adapter's.
    """
    import yaml

    header = _HEADER.match(text)
    data = (yaml.safe_load(header.group(1)) if header else None) or {}
    body = text[header.end() :] if header else text
    try:
        (first, *_) = data["model-index"]
        name, earlier = first["name"], list(first["results"])
        others = [entry for entry in earlier if entry["dataset"]["name"] != result.dataset]
    except (KeyError, TypeError, ValueError):  # none, or not as the Hub has it
        others = []
    results = [*others, _indexed(result.task, result.dataset, result.metrics)]
    data["model-index"] = [{"name": name, "results": results}]
    title = f"## Judged on {result.dataset}"
    kept = re.sub(rf"(?ms)^{re.escape(title)}$.*?(?=^## |\Z)", "", body).strip("\n")
    pictures = [f"![{Path(file).stem}]({file})" for file in result.pictures]
    section = "\n\n".join([title, _table(("metric", "value"), result.metrics), *pictures])
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n{kept}\n\n{section}\n"


def _indexed(task: str, dataset: str, metrics: Mapping[str, float]) -> dict[str, Any]:
    return {
        "task": {"type": task},
        "dataset": {"name": dataset, "type": "imagefolder"},
        "metrics": [{"type": name, "value": round(value, 4)} for name, value in metrics.items()],
    }


def read_card_data(folder: Path) -> dict[str, Any]:
    """The metadata of `folder`'s card; empty when there is no card or no header.

    Raises:
        AdapterError: the header is not valid YAML, or larger than `MAX_HEADER_BYTES`.
    """
    path = folder / CARD
    if not path.is_file():
        return {}
    import yaml

    text = path.read_text(encoding="utf-8", errors="replace")
    header = _HEADER.match(text)
    if not header:
        return {}
    raw = header.group(1)
    if len(raw) > MAX_HEADER_BYTES:
        raise AdapterError(f"the header of {CARD} has {len(raw):,} characters (limit {MAX_HEADER_BYTES:,})")
    try:
        _refuse_bombs(raw)
        data = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # PyYAML takes tags such as `!!bool maybe` at their word.
        raise AdapterError(f"the header of {CARD} is not valid YAML: {error}") from error
    return data if isinstance(data, dict) else {}


def _refuse_bombs(raw: str) -> None:
    """Refuse what makes small texts expensive: aliases stand for gigabytes, nesting costs its square."""
    import yaml

    depth = 0
    for event in yaml.parse(raw, Loader=yaml.SafeLoader):  # one event at a time, without building anything
        if isinstance(event, yaml.AliasEvent):
            raise AdapterError(f"the header of {CARD} uses YAML aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_HEADER_DEPTH:
            raise AdapterError(f"the header of {CARD} is nested more than {MAX_HEADER_DEPTH} deep")


def _usage(card: Card) -> str:
    if card.task == "text-to-image":
        prompt = card.samples[0].text if card.samples else card.instance_prompt or "a prompt"
        body = json.dumps({"model": f"OWNER/{card.title}", "prompt": prompt}, ensure_ascii=False)
        return (
            f"```sh\nhubctl generate {shlex.quote(prompt)} --adapter OWNER/{card.title}\n```\n\n"
            f"```sh\ncurl -s {SERVER}/v1/images/generations -H 'Content-Type: application/json' \\\n"
            f"  -d {shlex.quote(body)} \\\n"
            "  | jq -r '.data[0].b64_json' | base64 -d > picture.png\n```\n\n"
            "```python\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{card.base_model}")\n'
            f'pipe.load_lora_weights("OWNER/{card.title}")\n{_load_tokens(card)}'
            f"pipe({json.dumps(prompt)}).images[0]\n```"
        )
    if card.linear_head:
        loader = "hubctl.modeling.loading import load_segmenter"
        labels = f", {{i: str(i) for i in range({card.classes})}}" if card.classes else ""
        load = f'load_segmenter("{card.base_model}"{labels})'
    else:
        loader = "transformers import AutoModelForSemanticSegmentation"
        sized = f", num_labels={card.classes}, ignore_mismatched_sizes=True" if card.classes else ""
        load = f'AutoModelForSemanticSegmentation.from_pretrained("{card.base_model}"{sized})'
    return (
        f"```sh\nhubctl segment photo.png --adapter OWNER/{card.title}\n```\n\n"
        f"```sh\ncurl -s {SERVER}/v1/images/segmentations -F image=@photo.png \\\n"
        f"  -F model=OWNER/{card.title} -F output=overlay | jq -r .image | base64 -d > overlay.png\n```\n\n"
        f"```python\nfrom peft import PeftModel\nfrom {loader}\n\n"
        f'base = {load}\nmodel = PeftModel.from_pretrained(base, "OWNER/{card.title}")\n```'
    )


def _load_tokens(card: Card) -> str:
    """Lines that teach a pipeline the new tokens; empty where there are none."""
    if card.new_tokens is None:
        return ""
    lines = [
        "from huggingface_hub import hf_hub_download",
        "from safetensors.torch import load_file",
        "",
        f'vectors = load_file(hf_hub_download("OWNER/{card.title}", "{card.new_tokens.file.name}"))',
        f"names = {json.dumps(card.new_tokens.names)}",
        *(
            f'pipe.load_textual_inversion(vectors["{key}"], token=names, text_encoder=pipe.{component}, '
            f"tokenizer=pipe.{TOKENIZERS[component]})"
            for component, key in card.new_tokens.keys.items()
        ),
    ]
    return "".join(f"{line}\n" for line in lines)


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for key, value in rows.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"| {key} | {shown.replace('|', '&#124;')} |".replace("\n", " "))
    return "\n".join(lines)


def first_base_model(card: Mapping[str, Any]) -> str | None:
    """The base that a card's metadata names; cards hold one id or a list of them."""
    named = card.get("base_model")
    if isinstance(named, list):
        named = named[0] if named else None
    return named if isinstance(named, str) and named.strip() else None
