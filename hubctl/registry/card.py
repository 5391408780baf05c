"""What a repository's README says about it: metadata, tags, task, library. Pure.

The tags follow the Hub's conventions, so that a search such as `base_model:adapter:ID` finds the same here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from hubctl.errors import InputError

MAX_CARD_BYTES = 256 * 1024
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_PIPELINE_TAGS = frozenset(
    {"text-to-image", "image-to-image", "image-segmentation", "image-classification", "object-detection",
     "text-generation", "feature-extraction", "unconditional-image-generation"}
)  # fmt: skip
_ADAPTER_FILES = frozenset({"adapter_config.json", "pytorch_lora_weights.safetensors"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What the registry indexes of a repository."""

    data: dict[str, Any]
    """The README's YAML header, made safe for JSON."""
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None


def read_card(readme: str, paths: Collection[str]) -> Card:
    """Index a README (may be empty) of a repository holding `paths`.

    Raises:
        InputError: the YAML header cannot be read.
    """
    data = read_front_matter(readme)
    library = _text(data.get("library_name")) or _library_of(paths)
    own_tags = list(_texts(data.get("tags")))
    pipeline_tag = _text(data.get("pipeline_tag")) or next(
        (tag for tag in own_tags if tag in _PIPELINE_TAGS), None
    )
    tags = [*([library] if library else []), *own_tags, *([pipeline_tag] if pipeline_tag else [])]
    if any(path.endswith(".safetensors") for path in paths):
        tags.append("safetensors")
    tags += _texts(data.get("language"))
    tags += (f"dataset:{name}" for name in _texts(data.get("datasets")))
    relation = _text(data.get("base_model_relation")) or _relation(library, own_tags, paths)
    for base in _texts(data.get("base_model")):
        tags += [f"base_model:{base}", f"base_model:{relation}:{base}"]
    tags += (f"license:{name}" for name in _texts(data.get("license")))
    return Card(data=data, tags=tuple(dict.fromkeys(tags)), pipeline_tag=pipeline_tag, library_name=library)


def read_front_matter(readme: str) -> dict[str, Any]:
    """The YAML header of a README as plain JSON values; empty if there is none.

    Raises:
        InputError: too long, not YAML, not a mapping, or using anchors (a few lines of which can expand to
            gigabytes).
    """
    match = _FRONT_MATTER.match(readme)
    if match is None:
        return {}
    if len(match[1]) > MAX_CARD_BYTES:
        raise InputError(f"the YAML header of README.md is longer than {MAX_CARD_BYTES} bytes")
    try:
        data = _plain(yaml.load(match[1], Loader=_CardLoader))
    except yaml.YAMLError as error:
        raise InputError(f"the YAML header of README.md cannot be read: {error}") from error
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # Impossible dates, huge numbers, deep nesting; tags that PyYAML takes at their word: `!!bool maybe`.
        raise InputError(f"the YAML header of README.md has an impossible value: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError("the YAML header of README.md must be a mapping of names to values")
    return data


def without_front_matter(readme: str) -> str:
    """A README without its YAML header."""
    match = _FRONT_MATTER.match(readme)
    return readme[match.end() :] if match else readme


class _CardLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # YAML escapes can spell half a surrogate pair
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 64 else float(value)
    return str(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value and len(value) <= 200 else None


def _texts(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if text := _text(item):
            yield text


def _library_of(paths: Collection[str]) -> str | None:
    if "pytorch_lora_weights.safetensors" in paths or "model_index.json" in paths:
        return "diffusers"
    if "adapter_config.json" in paths:
        return "peft"
    return "transformers" if "config.json" in paths else None


def _relation(library: str | None, tags: Collection[str], paths: Collection[str]) -> str:
    is_adapter = library == "peft" or "lora" in tags or not _ADAPTER_FILES.isdisjoint(paths)
    return "adapter" if is_adapter else "finetune"
