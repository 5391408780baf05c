"""What encoders made of images and prompts, kept on the disk: later trainings on them encode nothing.

An entry is one batch as it was encoded, since what an image becomes depends on its batch by rounding: a
training with the cache is bit by bit the same as one without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

LIMIT_BYTES = 4_000_000_000
"""Of all entries together; the longest unused go first."""

Tensors = dict[str, torch.Tensor]


class EncodedStore:
    """Entries in a folder, by what they depend on."""

    def __init__(self, folder: Path, facts: dict[str, Any], *, limit_bytes: int = LIMIT_BYTES) -> None:
        """`facts` are what all entries of this store depend on: the base, precision, device, versions."""
        self._folder, self._limit_bytes = folder, limit_bytes
        self._facts = json.dumps(facts, sort_keys=True)

    def get(self, parts: Sequence[str], encode: Callable[[], Tensors], device: torch.device) -> Tensors:
        """The entry of `parts`; made by `encode` and kept, where there is none."""
        key = hashlib.sha256(json.dumps([self._facts, *parts]).encode()).hexdigest()
        path = self._folder / f"{key}.safetensors"
        with contextlib.suppress(OSError, SafetensorError):
            # A copy: the file's tensors lie wherever its header ends, and sums depend on where they begin.
            found = {name: value.clone() for name, value in load_file(path, device=str(device)).items()}
            os.utime(path)
            return found
        # In the order of the file, or convolutions would sum in another one.
        made = {name: value.contiguous() for name, value in encode().items()}
        # A cache that cannot be written is no reason not to train.
        with contextlib.suppress(OSError, SafetensorError):
            self._keep(path, made)
        return made

    def _keep(self, path: Path, tensors: Tensors) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".part-", delete=False) as part:
            whole = Path(part.name)
        try:
            save_file({name: value.cpu() for name, value in tensors.items()}, whole)
            whole.replace(path)
        finally:
            whole.unlink(missing_ok=True)
        files = [(p, p.stat()) for p in self._folder.glob("*.safetensors")]
        for old in to_forget(((p.name, s.st_size, s.st_mtime) for p, s in files), self._limit_bytes):
            (self._folder / old).unlink(missing_ok=True)


def to_forget(files: Iterable[tuple[str, int, float]], limit_bytes: int) -> list[str]:
    """Which files (name, bytes, last use) must go, the longest unused first, to be within the limit."""
    by_use = sorted(files, key=lambda file: file[2])
    total = sum(size for _, size, _ in by_use)
    gone = []
    for name, size, _ in by_use:
        if total <= limit_bytes:
            break
        gone.append(name)
        total -= size
    return gone
