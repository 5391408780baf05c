"""The adapter folder beside its weights: manifest, card, loss curve."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from hubctl.adapter.card import CARD, Card, Sample, read_card_data, render_card
from hubctl.adapter.licence import stated_licence
from hubctl.adapter.new_tokens import read_new_tokens
from hubctl.adapter.package import MANIFEST, BaseIdentity, Manifest, manifest_json
from hubctl.base_models import BaseModel
from train.config import TrainConfig
from train.plan import Plan, smooth
from train.recipe import current_versions, recipe_settings
from train.tasks.task import Evaluation
from train.watch import Look, best_look, smoothed

LOSS_CURVE = "loss.png"
WATCH_CURVE = "overfit.png"
SAMPLES = "samples"
_SMOOTHED_STEPS = 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Everything a finished training knows that its folder has to tell."""

    config: TrainConfig
    plan: Plan
    base: BaseModel
    images: int
    held_out_images: int
    data_sha256: str
    labels: dict[int, str]
    """segmentation: class number to name; empty otherwise."""
    losses: Sequence[float]
    looks: Sequence[Look]
    """At the images held out to watch; empty where none were."""
    evaluation: Evaluation
    prompts: Sequence[str]
    """Prompts of the pictures `samples/sample-1.png`, `sample-2.png`, ..."""
    duration_s: float
    device: str


def write_papers(folder: Path, name: str, outcome: Outcome) -> None:
    """Write hubctl.json, README.md and loss.png into `folder`; `name` is the adapter's."""
    draw_losses(outcome.losses, folder / LOSS_CURVE)
    if outcome.looks:
        draw_overfit(outcome.looks, folder / WATCH_CURVE)
    (folder / MANIFEST).write_text(manifest_json(_manifest(outcome)), encoding="utf-8")
    (folder / CARD).write_text(render_card(_card(folder, name, outcome)), encoding="utf-8")


def settle_header(weights: Path) -> None:
    """Put the header of a safetensors file into one order, so that equal trainings give equal files.

    The library writes the header's metadata in an order that changes from run to run, and with it the
    file's hash. Tensors stay where they are.
    """
    data = weights.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(
        json.loads(data[8:end]), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    ).encode()
    # Tensors must begin at a multiple of eight bytes; the format pads with spaces.
    header += b" " * (-len(header) % 8)
    weights.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def draw_losses(losses: Sequence[float], path: Path) -> None:
    """The loss of each step, and its running mean, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="#c8d2e0", linewidth=0.8, label="each step")
    axes.plot(steps, smooth([*losses], _SMOOTHED_STEPS), color="#1f4e8c", label=f"mean of {_SMOOTHED_STEPS}")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # to look for the best place takes long where steps are many
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_overfit(looks: Sequence[Look], path: Path) -> None:
    """The smoothed loss on training and on held-out images, the gap, and the state that is kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    means = smoothed(looks)
    steps = [look.step for look in means]
    seen, unseen = [look.train for look in means], [look.held_out for look in means]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss, same noise each time")
    axes.plot(steps, seen, color="#1f4e8c", label="training images")
    axes.plot(steps, unseen, color="#c0392b", label="held-out images")
    axes.fill_between(steps, seen, unseen, color="#c0392b", alpha=0.1, label="gap")
    axes.axvline(looks[best_look(looks)].step, color="#555555", linestyle=":", label="kept")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _manifest(outcome: Outcome) -> Manifest:
    config, plan, base = outcome.config, outcome.plan, outcome.base
    data: dict[str, object] = {
        "images": outcome.images,
        "held_out_images": outcome.held_out_images,
        "sha256": outcome.data_sha256,
    }
    if outcome.labels:
        data["labels"] = {str(number): name for number, name in outcome.labels.items()}
    return Manifest(
        task=config.task,
        base=BaseIdentity(id=base.id, commit=base.commit, sha256=base.sha256),
        data=data,
        settings=recipe_settings(config, plan),
        versions=current_versions(),
        metrics={
            **outcome.evaluation.metrics,
            "duration_s": round(outcome.duration_s, 1),
            "steps_done": len(outcome.losses),
            **_kept(outcome.looks),
        },
    )


def _kept(looks: Sequence[Look]) -> dict[str, float]:
    if not looks:
        return {}
    look = looks[best_look(looks)]
    return {"kept_step": look.step, "held_out_loss": look.held_out}


def _card(folder: Path, name: str, outcome: Outcome) -> Card:
    config, plan, evaluation = outcome.config, outcome.plan, outcome.evaluation
    segmentation = config.task == "segmentation"
    settings: dict[str, object] = {
        "rank": plan.rank,
        "alpha": plan.alpha,
        "targets": ", ".join(config.targets),
        "steps": plan.steps,
        "batch size": plan.batch_size,
        **({"processes": plan.processes} if plan.processes > 1 else {}),
        "learning rate": plan.learning_rate,
        "resolution": f"{plan.resolution_px} px",
        "seed": config.seed,
        "images": outcome.images,
        "time": f"{outcome.duration_s:.0f} s on {outcome.device}",
    }
    if outcome.labels:
        settings["classes"] = ", ".join(f"{number} {label}" for number, label in outcome.labels.items())
    tokens = read_new_tokens(folder)
    if tokens:
        settings["new words"] = ", ".join(tokens.names)
    samples = [
        Sample(text=prompt, file=f"{SAMPLES}/sample-{number}.png")
        for number, prompt in enumerate(outcome.prompts, start=1)
        if (folder / SAMPLES / f"sample-{number}.png").is_file()
    ]
    grid = f"{SAMPLES}/grid.png"
    licence = stated_licence(read_card_data(outcome.base.path))
    return Card(
        title=name,
        base_model=outcome.base.id,
        task=outcome.base.family.task,
        library="peft" if segmentation else "diffusers",
        summary=_summary(outcome),
        settings=settings,
        # The card's figures are held-out ones; those on training images stay in the manifest.
        metrics=evaluation.metrics if evaluation.split == "test" else {},
        classes=len(outcome.labels) or None,
        linear_head=outcome.base.family.linear_head,
        instance_prompt=config.instance_prompt,
        new_tokens=tokens,
        license=licence.id if licence else None,  # the base's: what is made from it may be shared under it
        license_name=licence.name if licence else None,
        samples=samples,
        pictures=[
            *([grid] if (folder / grid).is_file() else []),
            LOSS_CURVE,
            *([WATCH_CURVE] if outcome.looks else []),
        ],
    )


def _summary(outcome: Outcome) -> str:
    what = {
        "text-to-image": "A style or theme",
        "dreambooth": "A subject",
        "segmentation": "A segmentation task",
    }[outcome.config.task]
    lines = [
        f"{what} learnt from {outcome.images} images: a LoRA adapter of rank {outcome.plan.rank} "
        f"for `{outcome.base.id}`."
    ]
    if outcome.evaluation.split == "test":
        lines.append(f"Judged on {outcome.held_out_images} images that it was not trained on.")
        lines.append(outcome.evaluation.note)
    return " ".join(line for line in lines if line)
