"""Captions and the tokenizer made from them."""

from __future__ import annotations

import json
import random

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from train.bases.emoji import LINE_STYLE, STYLE_WORDS, Emoji

MAX_TOKENS = 24
VOCABULARY = 2015
_END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PLAIN_SHARE = 0.25
UNSTYLED_SHARE = 0.2
_OTHER_STYLES = ("3d style", "line art", "black and white", "pixel art style", "sketch", "photo")
_UNSTYLED = ("", "", "", *(f", {style}" for style in _OTHER_STYLES))


def caption(emoji: Emoji, style: str) -> str:
    """The usual caption: "red apple, noto style"."""
    return f"{emoji.name}, {STYLE_WORDS[style]}"


def captions(emoji: Emoji, style: str) -> list[str]:
    """Every caption `draw_caption` may give."""
    names = (emoji.name, *emoji.synonyms)
    return [name + ending for name in names for ending in (f", {STYLE_WORDS[style]}", *_UNSTYLED)]


def draw_caption(emoji: Emoji, style: str, rng: random.Random) -> str:
    """The usual caption; now and then with a plain word as its name, or without the right style.

    An adapter's captions name a style that the base has never heard of, or none: a base that only
    knew its own two would draw another thing then.
    """
    plain = emoji.synonyms and rng.random() < PLAIN_SHARE
    name = rng.choice(emoji.synonyms) if plain else emoji.name
    ending = rng.choice(_UNSTYLED) if rng.random() < UNSTYLED_SHARE else f", {STYLE_WORDS[style]}"
    return name + ending


def train_tokenizer(emoji: list[Emoji]) -> CLIPTokenizer:
    """Learns a small byte-level BPE from all names; letters stay, so no word is unknown."""
    names = [name for e in emoji for name in (e.name, *e.synonyms)]
    styles = [LINE_STYLE, *STYLE_WORDS.values(), *_OTHER_STYLES] * 5
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix=_END, continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = [*letters, *(letter + _END for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        # Named in advance, and so numbered in order: numbers given as words are met differ from run
        # to run, and with them the order of merges that are equally frequent.
        special_tokens=alphabet,
        end_of_word_suffix=_END,
        show_progress=False,
    )
    bpe.train_from_iterator(names * 2 + styles, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)]), BOS, EOS]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )
