"""All that one demo came to: what the report shows, and what `--json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubctl.demo.data import HeldOut, Masked
from hubctl.demo.figures import Segmented
from hubctl.demo.requests import Cut, Shot
from hubctl.demo.stages import DemoConfig, Pushed, Training


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleResult:
    """Held-out captions, drawn by base and adapter and judged."""

    things: list[HeldOut]
    base: list[Shot]
    adapter: list[Shot]
    base_styles: list[str]
    adapter_styles: list[str]
    """What the judge takes each picture for."""
    wanted: str
    """The judge's name for the adapter's style."""
    judge_accuracy: float
    """The part of real, held-out pictures whose style it names rightly."""
    base_rate: float
    adapter_rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentResult:
    """Held-out pictures, segmented by base and adapter and compared with their masks."""

    photos: list[Masked]
    base: list[Cut]
    adapter: list[Cut]
    labels: list[str]
    """The task's classes, by number."""
    base_figures: Segmented
    adapter_figures: Segmented


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One demo, from the first command to the last."""

    config: DemoConfig
    seconds: dict[str, float]
    """By stage."""
    started: dict[str, float]
    """By stage: seconds since the demo began."""
    total_s: float
    trainings: tuple[Training, ...]
    pushed: list[Pushed]
    """In the order of `trainings`."""
    together: list[Shot]
    together_cuts: list[Cut]
    style: StyleResult
    segment: SegmentResult
    typed: list[str]
    """The commands, as a person would have typed them."""

    def images(self) -> list[Path]:
        """Every picture that was served."""
        shots = [*self.together, *self.style.base, *self.style.adapter]
        cuts = [*self.together_cuts, *self.segment.base, *self.segment.adapter]
        return [*(shot.ask.path for shot in shots), *(cut.labels for cut in cuts)]


def as_json(outcome: Outcome, report: Path) -> dict[str, Any]:
    """What `hubctl demo --json` prints."""
    style, segment = outcome.style, outcome.segment
    return {
        "seconds": {
            **{key: round(value, 2) for key, value in outcome.seconds.items()},
            "total": round(outcome.total_s, 2),
        },
        "images": [str(path) for path in outcome.images()],
        "adapters": [
            {
                "id": pushed.id,
                "commit": pushed.commit,
                "url": pushed.url,
                "path": str(training.folder),
                "train_seconds": round(training.seconds, 2),
            }
            for training, pushed in zip(outcome.trainings, outcome.pushed, strict=True)
        ],
        "style_hit_rate": {"base": round(style.base_rate, 4), "adapter": round(style.adapter_rate, 4)},
        "miou": {
            "base": round(segment.base_figures.miou, 4),
            "adapter": round(segment.adapter_figures.miou, 4),
        },
        "judge_accuracy": style.judge_accuracy,
        "report": str(report),
    }
