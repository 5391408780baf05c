"""`hubctl train`: flags to a TrainConfig, and a training's events to a progress bar or JSON lines."""

from __future__ import annotations

import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hubctl.cli.output import Output, Progress, duration, human_bytes, json_option
from hubctl.errors import InputError
from hubctl.settings import place

if TYPE_CHECKING:
    from hubctl.refs import AdapterRef
    from train.config import TrainConfig
    from train.events import Event, Planned, Started

F = TypeVar("F", bound=Callable[..., Any])

_FOLDER = click.Path(path_type=Path)


def _common(command: F) -> F:
    """Flags of every task."""
    precisions = click.Choice(["auto", "no", "bf16", "fp16"])
    options: tuple[Callable[[Any], Any], ...] = (
        click.option("--base", required=True, metavar="REF", help="Base: a name, a folder or OWNER/NAME."),
        click.option("--data", required=True, type=_FOLDER, metavar="DIR", help="Folder of training data."),
        click.option("--output", required=True, type=_FOLDER, metavar="DIR", help="Adapter folder to make."),
        click.option("--overwrite", is_flag=True, help="Replace the output folder if it is there."),
        click.option("--steps", type=int, help="Optimizer steps.  [default: by task and base]"),
        click.option("--plan", "plan_only", is_flag=True,
                     help="Run some steps, say what all of it will take, and write nothing."),
        click.option("--resume", is_flag=True, help="Go on with a training that was stopped."),
        click.option("--restart", is_flag=True, help="Give up a training that was stopped, and begin again."),
        click.option("--batch-size", type=int,
                     help="Images at once, of each process.  [default: by task and base]"),
        click.option("--accumulate", "accumulation", type=int, default=1, show_default=True,
                     metavar="BATCHES", help="Batches whose gradients make one step."),
        click.option("--processes", type=int, metavar="N",
                     help="Train in N processes, with a GPU and a batch each.  [default: 1]"),
        click.option("--lr", "learning_rate", type=float, help="Peak rate.  [default: by task and base]"),
        click.option("--schedule", default="cosine", show_default=True,
                     type=click.Choice(["cosine", "linear", "polynomial", "constant"]),
                     help="How the rate goes on after its rise."),
        click.option("--optimizer", default="adamw", show_default=True,
                     type=click.Choice(["adamw", "adamw8bit", "prodigy", "adafactor"])),
        click.option("--ema", type=float, metavar="PART",
                     help="Save a running mean that keeps this part each step, e.g. 0.99."),
        click.option("--rank", type=int, default=16, show_default=True, help="LoRA rank."),
        click.option("--alpha", type=float, help="LoRA alpha.  [default: the rank]"),
        click.option("--dora", is_flag=True, help="Weight-decomposed LoRA: slower, sometimes better."),
        click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(rank)."),
        click.option("--lora-plus", type=float, default=1.0, show_default=True, metavar="RATIO",
                     help="Rate of LoRA's B over A's: LoRA+ proposes 16."),
        click.option("--targets", default="attention", show_default=True, metavar="PRESET|NAMES",
                     help="Layers to adapt: attention, attention-conv, all-linear, or names with commas."),
        click.option("--resolution", type=int, metavar="PX", help="Side of the images.  [default: the base]"),
        click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same weights."),
        click.option("--mixed-precision", type=precisions, default="auto", show_default=True,
                     help="auto: half precision on a GPU, none on a CPU."),
        click.option("--checkpoint-every", type=int, metavar="STEPS",
                     help="Save the state this often; 0 only when stopped.  [default: ten times]"),
        click.option("--hold-out", type=float, metavar="PART",
                     help="Part of the images to watch on.  [default: a tenth of 20 or more]"),
        click.option("--auto-stop/--no-auto-stop", default=None,
                     help="Stop when held-out images get worse.  [default: where there are some]"),
        click.option("--sample-every", type=int, metavar="STEPS",
                     help="Draw samples this often; 0 for never.  [default: twice]"),
        click.option("--cluster", metavar="ADDRESS",
                     help="Train on a Ray cluster, e.g. http://HEAD:8265, and push from there."),
        click.option("--repo", metavar="OWNER/NAME", help="--cluster: where to.  [default: as hubctl push]"),
        click.option("--gpus", type=float, help="--cluster: that it takes.  [default: one for each process]"),
        click.option("--send-token", is_flag=True,
                     help="--cluster: push as you, and not as the cluster; its users could read the token."),
        click.option("--track", multiple=True, type=click.Choice(["tensorboard", "wandb", "trackio"]),
                     help="Tell an experiment tracker; may be repeated."),
        json_option,
        click.pass_obj,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _diffusion(command: F) -> F:
    """Flags of the tasks that train a denoiser."""
    options: tuple[Callable[[Any], Any], ...] = (
        click.option("--sample-prompt", "sample_prompts", multiple=True, metavar="TEXT",
                     help="Prompt to draw while training; may be repeated."),
        click.option("--train-text-encoder/--no-train-text-encoder", default=None,
                     help="Adapt CLIP too.  [default: no, but for --preset face]"),
        click.option("--text-encoder-lr", type=float, metavar="RATE",
                     help="Its peak rate.  [default: half of --lr]"),
        click.option("--new-token", "new_tokens", multiple=True, metavar="NAME[=WORD]",
                     help='Learn a word of its own, e.g. "<my-dog>=dog"; may be repeated.'),
        click.option("--token-lr", type=float, metavar="RATE",
                     help="Peak rate of new words, which train in the first half.  [default: 5e-4]"),
        click.option("--quantize", type=click.Choice(["none", "int8", "fp8", "nf4"]), default="none",
                     show_default=True, help="Weights of the frozen base in 8 or 4 bits, for large ones."),
        click.option("--gradient-checkpointing", is_flag=True, help="Less memory, a third more time."),
        click.option("--min-snr", type=float, metavar="GAMMA", help="Weigh steps by min(SNR, GAMMA) / SNR."),
        click.option("--noise-offset", type=float, default=0.0, show_default=True,
                     help="For very dark and light images, e.g. 0.05."),
        click.option("--aspect-buckets", is_flag=True,
                     help="Train at shapes near the images' own, not on squares."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(no_args_is_help=True)
def train() -> None:
    """Train an adapter from a folder of images.

    \b
    Examples:
      hubctl train text-to-image --base emoji-64 --data drawings/ --output my-style
      hubctl train dreambooth --base emoji-64 --data my-dog/ --output my-dog-lora \\
          --instance-prompt "a photo of tok dog"
      hubctl train segmentation --base emoji-64-seg --data pets/ --output pets-lora
    """


@train.command("text-to-image")
@_common
@_diffusion
@click.option("--caption-dropout", type=float, default=0.05, show_default=True,
              help="Part of the captions left out, so that guidance keeps working.")  # fmt: skip
def text_to_image(out: Output, **settings: Any) -> None:
    """Learn a style or a theme from images with captions.

    DIR holds images and a metadata.jsonl with lines {"file_name": "a.png", "text": "a red apple"}, or a
    .txt beside each image. With DIR/train and DIR/test the second is only judged on.

    \b
    Example:
      hubctl train text-to-image --base emoji-64 --data drawings/ --output my-style --steps 400
      hubctl train text-to-image --base stabilityai/stable-diffusion-xl-base-1.0 --data drawings/ \\
          --output my-style --processes 4
    """
    _run(out, task="text-to-image", **settings)


@train.command()
@_common
@_diffusion
@click.option(
    "--preset",
    type=click.Choice(["object", "face", "style"]),
    help="Steps, batch, rate and text encoder that suit it.",
)
@click.option("--instance-prompt", required=True, metavar="TEXT", help="Names your subject.")
@click.option("--class-prompt", metavar="TEXT", help="Names its class; turns on prior preservation.")
@click.option("--class-data", type=_FOLDER, metavar="DIR",
              help="Images of the class; missing ones are drawn by the base into it.")  # fmt: skip
@click.option(
    "--num-class-images", type=int, default=32, show_default=True, help="Class images to train with."
)
@click.option(
    "--prior-weight", type=float, default=1.0, show_default=True, help="Weight of the class images."
)
def dreambooth(out: Output, **settings: Any) -> None:
    """Learn one subject from a few images of it.

    \b
    Example:
      hubctl train dreambooth --base emoji-64 --data my-dog/ --output my-dog-lora \\
          --instance-prompt "a photo of tok dog" --class-prompt "a photo of a dog"
      hubctl train dreambooth --base stable-diffusion-v1-5/stable-diffusion-v1-5 --data me/ \\
          --output me-lora --preset face --instance-prompt "a photo of ohwx person" \\
          --class-prompt "a photo of a person"
      hubctl train dreambooth --base emoji-64 --data my-dog/ --output my-dog-lora \\
          --instance-prompt "a photo of <my-dog>" --new-token "<my-dog>=dog"
    """
    _run(out, task="dreambooth", **settings)


@train.command()
@_common
def segmentation(out: Output, **settings: Any) -> None:
    """Learn a class for each pixel from images with masks.

    DIR holds images/*.png and masks/*.png of the same names, and a labels.json which says what a mask's
    pixels mean, by value or by colour: {"0": "background", "255": "pet"} or {"#ff0000": "pet", "#000000":
    "background"}; equal names are one class, null is ignored, and 255 too where it has no name. Without it
    pixels are class numbers. With DIR/train and DIR/test the second is only judged on. The Oxford-IIIT Pet
    data set is taken as it unpacks.

    \b
    Example:
      hubctl train segmentation --base emoji-64-seg --data pets/ --output pets-lora
    """
    _run(out, task="segmentation", **settings)


def config_of(*, targets: str, processes: int | None = None, **settings: Any) -> TrainConfig:
    """The configuration that flags ask for; one of several processes (`accelerate launch`) is one of them."""
    from train.config import TrainConfig

    return TrainConfig(
        targets=tuple(name.strip() for name in targets.split(",")),
        processes=place().count if processes is None else processes,
        **settings,
    )


def _run(
    out: Output, *, plan_only: bool, cluster: str | None, repo: str | None, gpus: float | None,
    send_token: bool, **settings: Any,
) -> None:  # fmt: skip
    config = config_of(**settings)
    if cluster and plan_only:
        raise InputError("--plan measures this machine, not a cluster", hint="leave out --plan or --cluster")
    if plan_only and place().count > 1:
        raise InputError("--plan measures one process", hint="hubctl train ... --plan --processes N")
    if cluster:
        from hubctl.cli.cluster import train_there

        gpus = config.processes if gpus is None else gpus
        there = train_there(out, config, address=cluster, repo=repo, gpus=gpus, send_token=send_token)
        with closing(there):  # Ctrl-C ends it there too
            for _ in _reported(out, there):
                pass
    elif plan_only:
        _plan(out, config)
    else:
        run_training(out, config)


def _plan(out: Output, config: TrainConfig) -> None:
    from train.events import Planned, Preparing, Warned, event_data
    from train.measure import measure

    for event in measure(config, fetch_base=fetch_base):
        match event:
            case Preparing():
                out.note(f"{event.stage} ...")
            case Warned():
                out.warn(event.message)
            case Planned():
                out.result(event_data(event), text=_planned(event))


def _planned(plan: Planned) -> str:
    lines = [
        f"base       {plan.base} on {plan.device}",
        f"images     {plan.batch_size} at once, {plan.batch_size * plan.accumulation} a step"
        f"{f' in each of {plan.processes} processes' if plan.processes > 1 else ''}, {plan.resolution_px} px",
        f"memory     {human_bytes(plan.peak_memory_bytes)} at most, of {human_bytes(plan.memory_bytes)}",
        f"time       {duration(plan.duration_s)} for {plan.steps} steps, {plan.steps_per_s:.3g} a second",
        f"adapter    {human_bytes(plan.adapter_bytes)}, {plan.trainable_parameters:,} parameters",
    ]
    if plan.class_images_to_draw:
        lines.append(f"draws      {plan.class_images_to_draw} class images before the first step")
    if plan.processes > 1:
        lines.append(f"measured   in one process; {plan.processes} exchange gradients too")
    fits = f"no: add {' '.join(plan.changes)}" if plan.changes else "yes"
    return "\n".join([*lines, f"fits       {fits}"])


def run_training(out: Output, config: TrainConfig, *, resume_flag: Sequence[str] = ("--resume",)) -> None:
    """Train, show what happens, and let Ctrl-C end it well; with `resume_flag` the command goes on later.

    Raises:
        SystemExit: 130, when it was stopped.
    """
    from train.events import Preparing, Started, Stopped
    from train.run import train as start

    # Libraries warn their developers of changes to come; who types a command cannot act on that.
    warnings.filterwarnings("ignore", category=FutureWarning)
    here = place()
    ask = _Ask(out, told_again=here.count > 1)
    # A polite kill ends a training as Ctrl-C does.
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, ask.hear)
    stopped = False
    with closing(start(config, fetch_base=fetch_base, stop=ask.heard)) as events:
        for event in _reported(out, events) if here.rank == 0 else events:
            ask.patient = isinstance(event, Started) or (ask.patient and not isinstance(event, Preparing))
            if isinstance(event, Stopped):
                stopped = True
                again = [word for word in sys.argv[1:] if word not in resume_flag]
                out.note(f"stopped after step {event.step} of {event.steps}; nothing is lost")
                out.note(f"  next: {shlex.join(['hubctl', *again, *resume_flag])}")
    if stopped:
        raise SystemExit(130)
    if here.rank:
        raise SystemExit  # what comes after a training is for the first process alone


class _Ask:
    """Ctrl-C: the first one asks training to save and end, where it is far enough; the next ends at once."""

    def __init__(self, out: Output, *, told_again: bool) -> None:
        """`told_again`: `accelerate launch` sends on what a terminal has sent to all, which is no second."""
        self._out, self._asked, self._told_again = out, False, told_again
        self.patient = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        if not self.patient or (self._asked and not self._told_again):
            raise KeyboardInterrupt
        if not self._asked and place().rank == 0:
            self._out.note("stopping after this step, which is saved; Ctrl-C again ends at once ...")
        self._asked = True

    def heard(self) -> bool:
        return self._asked


def fetch_base(ref: AdapterRef) -> tuple[Path, str]:
    """Bring a base from the current registry, which is asked only now: an embedded base needs no network."""
    from hubctl.hub.pull import pull_base
    from hubctl.hub.remotes import connect

    return pull_base(connect(), ref)


def _reported(out: Output, events: Iterator[Event]) -> Iterator[Event]:
    """Show each event as it passes: as a JSON line, or for people."""
    from train.events import event_data, event_kind

    if not out.json:
        yield from _shown(out, events)
        return
    for event in events:
        out.event(event_kind(event), event_data(event))
        yield event


def _shown(out: Output, events: Iterator[Event]) -> Iterator[Event]:
    from train.events import (
        Evaluated,
        Preparing,
        Resumed,
        Sampled,
        Saved,
        Started,
        StepDone,
        Verified,
        Warned,
        Watched,
    )

    with ExitStack() as steps:
        bar: Progress | None = None
        for event in events:
            match event:
                case Preparing():
                    steps.close()
                    out.note(f"{event.stage} ...")
                case Started():
                    out.note(_described(event))
                    bar = steps.enter_context(out.progress(event.steps, "training"))
                case Resumed():
                    out.note(f"going on after step {event.step}")
                case StepDone() if bar:
                    bar.update(event.step, loss=event.loss, rate=event.learning_rate)
                case Watched() if bar:
                    bar.update(held_out=event.held_out_loss)
                case Sampled() if bar:
                    bar.update(samples=event.step)
                case Evaluated():
                    for name, value in event.metrics.items():
                        out.note(f"  {name.replace('_', ' ')}: {value:.4f} ({event.split} images)")
                case Verified():
                    out.note("  diffusers or peft alone load it, and it answers as trained")
                case Saved():
                    out.result(
                        {"adapter": str(event.path), "weights_bytes": event.weights_bytes},
                        text=f"{event.path}: {human_bytes(event.weights_bytes)} of weights, with a card",
                        quiet="adapter",
                    )
                    out.note(f"  next: hubctl push {event.path}")
                case Warned():
                    out.warn(event.message)
            yield event


def _described(started: Started) -> str:
    held_out = f" and {started.held_out_images} held out" if started.held_out_images else ""
    together = f" in each of {started.processes} processes" if started.processes > 1 else ""
    return (
        f"{started.task}: {started.images} images{held_out}, {started.resolution_px} px, on {started.base} "
        f"({started.device}); {started.trainable_parameters:,} parameters train, rank {started.rank}, "
        f"{started.batch_size} images a step{together}, peak rate {started.learning_rate:g}"
    )
