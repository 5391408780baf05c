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
_OTHER_STYLES = ("3d style", "line art", "black and white", "pixel art style", "sketch", "photo")


def caption(emoji: Emoji, style: str) -> str:
    """The usual caption: "red apple, noto style"."""
    return captions(emoji, style)[0]


def captions(emoji: Emoji, style: str) -> list[str]:
    """Every caption `draw_caption` may give, its usual one first."""
    return [f"{name}, {STYLE_WORDS[style]}" for name in (emoji.name, *emoji.synonyms)]


def draw_caption(emoji: Emoji, style: str, rng: random.Random) -> str:
    """The caption, or now and then one with a plain word in the name's place."""
    usual, *plain = captions(emoji, style)
    return rng.choice(plain) if plain and rng.random() < PLAIN_SHARE else usual


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
