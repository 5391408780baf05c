"""Tokenizers for one request alone, with the words that its adapters bring."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from hubctl.adapter.new_tokens import TOKENIZERS
from hubctl.errors import AdapterError, InputError
from serve.engine.residency import Adapter

_SETS = 64
"""Sets of new tokens for which tokenizers are kept, the last used."""


class Tokenizers:
    """Copies of a pipeline's tokenizers, which any thread may borrow.

    A fast tokenizer keeps the padding and truncation of the present call in itself: two threads in one get
    each other's. As many copies are kept as requests run at once.
    """

    def __init__(self, pipeline: Any, adaptable: Collection[str], *, most: int) -> None:
        """`adaptable` are the components that adapters may change; `most` requests run at once."""
        parts = pipeline.components.items()
        self._own = {name: part for name, part in parts if isinstance(part, PreTrainedTokenizerBase)}
        self._growing = {
            component: name
            for component, name in TOKENIZERS.items()
            if component in adaptable and name in self._own
        }
        self._most = most
        self._lock = threading.Lock()
        self._free: OrderedDict[tuple[str, ...], deque[dict[str, Any]]] = OrderedDict()  # guarded by _lock

    @property
    def vocabularies(self) -> dict[str, int]:
        """Text encoder that takes new tokens → how many its tokenizer knows; new ones count on from there."""
        return {component: len(self._own[name]) for component, name in self._growing.items()}

    @contextmanager
    def lent(self, new: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
        """Tokenizers by their names in the pipeline, which know the tokens `new` too.

        Raises:
            AdapterError: the base knows one of them already.
        """
        with self._lock:
            free = self._free.setdefault(new, deque(maxlen=self._most))
            self._free.move_to_end(new)
            if len(self._free) > _SETS:
                self._free.popitem(last=False)
        try:
            tokenizers = free.popleft()
        except IndexError:
            tokenizers = self._grown(new)
        try:
            yield tokenizers
        finally:
            free.append(tokenizers)

    def _grown(self, new: tuple[str, ...]) -> dict[str, Any]:
        tokenizers = {name: copy.deepcopy(own) for name, own in self._own.items()}
        for name in self._growing.values():
            if tokenizers[name].add_tokens(list(new)) < len(new):
                raise AdapterError(
                    f"the base knows one of the new tokens {', '.join(new)} already",
                    hint="train it with other names",
                )
        return tokenizers


def own_tokens(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """The words that a request's adapters bring, in their order.

    Raises:
        InputError: two of them call one the same.
    """
    names = [name for adapter in adapters for name in adapter.tokens]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"two of the adapters bring a word {twice}, so nobody knows which is meant",
            hint="use one of them",
            param="loras",
        )
    return tuple(names)
