"""New tokens that an adapter brings (pivotal tuning): words of its own, with a vector for each text encoder.

A file beside the weights holds `clip_l` and, for bases with two CLIPs, `clip_g`, each (tokens, width): the
form of diffusers' advanced training scripts, which call it `NAME_emb.safetensors`. Its header may name the
tokens; without that they are `<s0>`, `<s1>` and so on, as in those scripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hubctl.adapter.header import Header, read_header
from hubctl.errors import AdapterError

TOKENS_FILE = "embeddings.safetensors"
"""What hubctl calls it."""
NAMES = "tokens"
"""Metadata of the file: a JSON list of the tokens' names."""
MAX_TOKENS = 64
KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Tensor → the text encoder that it is for."""
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Text encoder → what reads for it, by their names in a pipeline."""
_OTHERS_END = "_emb.safetensors"
# Brackets keep a name from being found inside other words.
_NAME = re.compile(r"<[\w.-]{1,60}>")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTokens:
    """The tokens of one adapter."""

    file: Path
    header: Header
    names: tuple[str, ...]
    keys: Mapping[str, str]
    """Text encoder → its tensor in the file."""

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder → length of a vector."""
        return {component: self.header.tensors[key].shape[1] for component, key in self.keys.items()}


def is_tokens_file(name: str) -> bool:
    """Whether a file of this name may hold new tokens, and no weights."""
    return name == TOKENS_FILE or name.endswith(_OTHERS_END)


def tokens_file(names: Iterable[str]) -> str | None:
    """Which of an adapter's files may hold its new tokens.

    Raises:
        AdapterError: several may.
    """
    found = sorted(name for name in names if "/" not in name and is_tokens_file(name))
    if TOKENS_FILE in found:
        return TOKENS_FILE
    if len(found) > 1:
        raise AdapterError(f"it has new tokens in several files: {', '.join(found)}", hint="keep one of them")
    return found[0] if found else None


def is_token_name(name: str) -> bool:
    """Whether a token may be called so."""
    return _NAME.fullmatch(name) is not None


def read_new_tokens(folder: Path) -> NewTokens | None:
    """The new tokens that lie in `folder`; None where there are none. No values are read.

    Raises:
        AdapterError: the file is broken, names are unsound or too many, or it is for an encoder that is no
            CLIP.
    """
    name = tokens_file(path.name for path in folder.glob("*.safetensors"))
    if name is None:
        return None
    header = read_header(folder / name)
    if not header.tensors.keys() & KEYS.keys():
        return None  # somebody's file of another kind
    if strange := sorted(header.tensors.keys() - KEYS.keys()):
        raise AdapterError(f"{name} has tokens for '{strange[0][:40]}', hubctl knows {' and '.join(KEYS)}")
    shapes = {key: tensor.shape for key, tensor in header.tensors.items()}
    counts = {shape[0] if len(shape) == 2 else 0 for shape in shapes.values()}
    if len(counts) > 1 or not 0 < min(counts) <= MAX_TOKENS:
        listed = ", ".join(f"{key} {list(shape)}" for key, shape in sorted(shapes.items()))
        raise AdapterError(f"{name} has no vectors for 1 to {MAX_TOKENS} tokens: {listed}")
    return NewTokens(
        file=folder / name,
        header=header,
        names=_names(header, min(counts), name),
        keys={KEYS[key]: key for key in sorted(header.tensors)},
    )


def _names(header: Header, count: int, where: str) -> tuple[str, ...]:
    stated = header.metadata.get(NAMES)
    if stated is None:
        return tuple(f"<s{number}>" for number in range(count))
    try:
        names = json.loads(stated)
        sound = all(is_token_name(name) for name in names) and len(names) == len(set(names)) == count
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise AdapterError(
            f"{where} does not name its {count} tokens soundly: {stated[:80]}", hint="as <s0>, <s1>, ..."
        )
    return tuple(names)
