"""`report.html`: one page that shows what happened, with every picture inside it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hubctl
from hubctl.cli.output import duration
from hubctl.demo import pictures
from hubctl.demo.outcome import Outcome, SegmentResult, StyleResult
from hubctl.demo.stages import TITLES, Training

TEMPLATE = "report.html"
CHART_WIDTH, CHART_HEIGHT = 560, 170
SHOWN_PHOTOS = 12


def write_report(outcome: Outcome, path: Path) -> None:
    """Write the page; it appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(render(outcome), encoding="utf-8")
    part.replace(path)


def render(outcome: Outcome) -> str:
    """The page's text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions and class names come from files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["percent"] = lambda value: f"{100 * value:.0f} %"
    environment.filters["points"] = lambda value: f"{100 * value:.1f}"
    return environment.get_template(TEMPLATE).render(
        version=hubctl.__version__,
        machine=f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        total_s=outcome.total_s,
        pictures_served=len(outcome.images()),
        style=outcome.style,
        segment=outcome.segment,
        cards=list(_cards(outcome.style)),
        together=_together(outcome),
        photos=list(_photos(outcome.segment)),
        shown_photos=SHOWN_PHOTOS,
        legend=_legend(outcome.segment),
        charts=[_chart(training) for training in outcome.trainings],
        chart_width=CHART_WIDTH,
        chart_height=CHART_HEIGHT,
        stages=_stages(outcome),
        adapters=_adapters(outcome),
        typed=outcome.typed,
    )


def _cards(style: StyleResult) -> Iterator[dict[str, Any]]:
    rows = zip(style.things, style.base, style.adapter, style.base_styles, style.adapter_styles, strict=True)
    for thing, base, adapter, base_style, adapter_style in rows:
        yield {
            "name": thing.name,
            "prompt": thing.prompt,
            "base": pictures.file_uri(base.ask.path),
            "base_style": base_style,
            "adapter": pictures.file_uri(adapter.ask.path),
            "adapter_style": adapter_style,
            "drawing": pictures.file_uri(thing.drawing) if thing.drawing else None,
        }


def _together(outcome: Outcome) -> list[dict[str, Any]]:
    style_id = outcome.pushed[0].id
    found = []
    for shot in outcome.together:
        ask = shot.ask
        scale = 1.0 if ask.model == style_id else sum(scale for _, scale in ask.loras)
        found.append(
            {
                "prompt": ask.prompt,
                "image": pictures.file_uri(ask.path),
                "who": f"adapter × {scale:g}" if scale else "base alone",
                "how": f"{ask.steps} steps, guidance {ask.guidance:g}, seed {ask.seed}",
                "took_s": shot.took_s,
            }
        )
    return found


def _photos(segment: SegmentResult) -> Iterator[dict[str, Any]]:
    background = _background(segment)
    same = segment.adapter_figures.mapping
    for photo, base, adapter in zip(segment.photos, segment.base, segment.adapter, strict=True):
        yield {
            "name": photo.image.stem.replace("-", " "),
            "photo": pictures.file_uri(photo.image),
            "base": pictures.overlay(photo.image, base.labels, segment.base_figures.mapping, background),
            "adapter": pictures.overlay(photo.image, adapter.labels, same, background),
            "truth": pictures.overlay(photo.image, photo.mask, same, background),
        }


def _background(segment: SegmentResult) -> int | None:
    return segment.labels.index("background") if "background" in segment.labels else None


def _legend(segment: SegmentResult) -> list[dict[str, Any]]:
    background = _background(segment)
    return [
        {
            "label": label,
            "color": None if number == background else "#{:02x}{:02x}{:02x}".format(*pictures.COLORS[number]),
            "base": segment.base_figures.iou[number],
            "adapter": segment.adapter_figures.iou[number],
        }
        for number, label in enumerate(segment.labels)
    ]


def _chart(training: Training) -> dict[str, Any]:
    return {
        "title": training.title,
        "curve": pictures.curve(training.losses, width=CHART_WIDTH, height=CHART_HEIGHT),
        "facts": training.facts,
        "seconds": training.seconds,
    }


def _stages(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "title": TITLES[key],
            "seconds": seconds,
            "left": 100 * outcome.started[key] / outcome.total_s,
            "width": max(0.4, 100 * seconds / outcome.total_s),
        }
        for key, seconds in outcome.seconds.items()
    ]


def _adapters(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "id": pushed.id,
            "commit": pushed.commit,
            "base": training.facts.get("base", ""),
            "rank": training.facts.get("rank", ""),
            "parameters": training.facts.get("trainable_parameters", 0),
            "bytes": sum(file.stat().st_size for file in training.folder.glob("*.safetensors")),
            "images": training.facts.get("images", ""),
        }
        for training, pushed in zip(outcome.trainings, outcome.pushed, strict=True)
    ]
