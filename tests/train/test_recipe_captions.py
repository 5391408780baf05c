"""The recipe's tokenizer: the ids it gives must not depend on the run that made it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from train.bases.captions import train_tokenizer
from train.bases.emoji import Emoji

WORDS = ("car", "cat", "coat", "boat", "goat", "gear", "bear", "tear", "star", "tram", "tray", "new", "net")


def emoji(name: str) -> Emoji:
    return Emoji(hexcode=name, name=name, group="g", subgroup="s", synonyms=(), held_out=False)


@settings(max_examples=4, deadline=None)
@given(names=st.lists(st.sampled_from(WORDS), min_size=6, unique=True))
def test_equally_frequent_words_get_the_same_ids_every_time(names: list[str]) -> None:
    vocabularies = [train_tokenizer([emoji(name) for name in names]).get_vocab() for _ in range(3)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert all(name + "</w>" in vocabularies[0] for name in names)
