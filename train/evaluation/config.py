"""What is to be judged, and the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hubctl.base_models import embedded_path
from hubctl.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What is to be judged, and on what.

    Raises:
        InputError: a field is out of range.
    """

    adapter: Path
    data: Path
    """Images with masks, with captions, or of one subject; of two splits the test part judges."""
    output: Path
    """The folder of the report to make."""
    overwrite: bool = False
    base: str | None = None
    """Where the adapter does not name it."""
    embedder: str | None = None
    """A CLIP or DINO: a folder or a Hub id. For 64 px pictures the embedded classifier serves."""
    prompt: str | None = None
    """What pictures without captions show."""
    images: int = 16
    """generation: references at most."""
    seed: int = 0
    card: bool = True
    """Write the figures into the adapter's own card too."""

    def __post_init__(self) -> None:
        """Check what stands alone."""
        if self.images < 1:
            raise InputError(f"--images is {self.images}", hint="give 1 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}", hint="give --seed from 0 to 2**63 - 1")


def can_judge(task: str, base: str, embedder: str | None) -> bool:
    """Whether something here says how good an adapter of this task is, besides the eye."""
    return task == "segmentation" or embedder is not None or has_own_judge(base)


def has_own_judge(base: str) -> bool:
    """Whether the classifier that comes with hubctl knows this base's pictures."""
    path = embedded_path(base)
    return path is not None and path.name == "emoji-64"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Figures of one adapter."""

    metrics: dict[str, float]
    rows: list[dict[str, object]] = field(default_factory=list)
    """A table: a row for each class, or for each scale of the adapter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How good an adapter is, and on what it was judged."""

    adapter: str
    base: str
    data: str
    data_sha256: str
    split: str
    """`test` where the data have such a part, else `all`."""
    images: int
    metrics: dict[str, float]
    rows: list[dict[str, object]]
    pictures: list[str]
    """Files beside the report."""
