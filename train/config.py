"""What the user asked to train: one frozen, checked dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from hubctl.adapter.new_tokens import MAX_TOKENS, is_token_name
from hubctl.errors import InputError

Task = Literal["text-to-image", "dreambooth", "segmentation"]
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
Weights = Literal["none", "int8", "fp8", "nf4"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Preset = Literal["object", "face", "style"]

Optimizer = Literal["adamw", "adamw8bit", "prodigy", "adafactor"]
Schedule = Literal["cosine", "linear", "polynomial", "constant"]

TASKS: tuple[str, ...] = get_args(Task)
WEIGHTS: tuple[str, ...] = get_args(Weights)
TRACKERS: tuple[str, ...] = get_args(Tracker)
PRESETS: tuple[str, ...] = get_args(Preset)
MIXED_PRECISIONS: tuple[str, ...] = get_args(MixedPrecision)
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
SCHEDULES: tuple[str, ...] = get_args(Schedule)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training, as the user wrote it. `None` means: let the plan choose (see `train.plan`).

    Raises:
        InputError: a field is out of range, or belongs to another task.
    """

    task: Task
    base: str
    """A base model: an embedded name, a local folder or a Hub id."""
    data: Path
    """The folder with the training images."""
    output: Path
    """The adapter folder to make. It appears only when training has succeeded."""
    overwrite: bool = False
    resume: bool = False
    """Go on with the unfinished training of this output."""
    restart: bool = False
    """Give up the unfinished training of this output."""

    steps: int | None = None
    batch_size: int | None = None
    accumulation: int = 1
    """Batches whose gradients make one step: the images of a step are batch size times this."""
    processes: int = 1
    """Processes that train together, on a GPU each: the images of a step are times this too."""
    learning_rate: float | None = None
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    """How the rate goes on after its rise."""
    warmup_fraction: float = 0.05
    """Part of the steps in which the rate rises from zero."""
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema: float | None = None
    """Judge and save a running mean of the adapter that keeps this part of itself each step, e.g. 0.99."""
    seed: int = 0
    resolution: int | None = None
    """Side of the square training images, in pixels."""
    aspect_buckets: bool = False
    """Not for segmentation: train at shapes near the images' own instead of on their middle squares."""
    mixed_precision: MixedPrecision = "auto"
    quantize: Weights = "none"
    """Weights of the frozen denoiser: int8 or fp8 (torchao) take half of half precision's memory, nf4
    (bitsandbytes) a quarter."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back instead of keeping them: less memory, a third more time."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; 0 writes one only when training is stopped."""

    rank: int = 16
    alpha: float | None = None
    """LoRA alpha; the rank when absent, so that the adapter's scale is 1."""
    dora: bool = False
    """Learn the length of each weight's columns apart from their direction (arXiv 2402.09353)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)."""
    lora_plus: float = 1.0
    """Factor on the rate of LoRA's B matrices (LoRA+, arXiv 2402.12354: 16); 1 is plain LoRA."""
    min_snr: float | None = None
    """Weigh steps by min(SNR, this) / SNR (arXiv 2303.09556, which proposes 5); not for flow matching."""
    noise_offset: float = 0.0
    """Part of noise that is one number for a whole channel, so that very dark and light images are learnt."""
    targets: tuple[str, ...] = ("attention",)
    """One preset of `train.adapt`, or names of the layers to adapt."""

    train_text_encoder: bool | None = None
    """Adapt the CLIP text encoders too; `None` is no, but for presets that need it."""
    text_encoder_lr: float | None = None
    """Their peak rate; half of the other when absent."""

    new_tokens: tuple[str, ...] = ()
    """Words that the training invents, each as `<name>` or `<name>=word`: one that begins as `word`."""
    token_lr: float | None = None
    """Peak rate of their vectors; 5e-4 when absent."""

    hold_out: float | None = None
    """Part of the training images to watch for overfitting on; when absent, a tenth of 20 or more."""
    auto_stop: bool | None = None
    """Stop when held-out images get worse; on when absent and there are some."""

    track: tuple[Tracker, ...] = ()
    """Experiment trackers that are told of losses, figures and samples."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts drawn while training; some of the captions when empty."""
    sample_every: int | None = None
    """Steps between two sample grids; 0 draws none."""
    caption_dropout: float = 0.05
    """Part of the captions replaced by the empty prompt, so that guidance keeps working."""

    preset: Preset | None = None
    """dreambooth: what kind of subject it is; settings that suit it, where none are given."""
    instance_prompt: str | None = None
    """dreambooth: the prompt that names the subject."""
    class_prompt: str | None = None
    """dreambooth: the prompt that names the subject's class; asks for prior preservation."""
    class_data: Path | None = None
    """dreambooth: images of the class. Missing ones are generated by the base into this folder."""
    num_class_images: int = 32
    prior_weight: float = 1.0

    labels: dict[int, str] = field(default_factory=dict)
    """segmentation: names of the classes, where the data folder has no labels.json."""

    @property
    def tokens(self) -> dict[str, str | None]:
        """Names of the new tokens, each with the word that it begins as."""
        parts = (token.partition("=") for token in self.new_tokens)
        return {name: word.strip() or None for name, _, word in parts}

    def __post_init__(self) -> None:
        """Check every field by itself, then the fields that belong together."""
        if self.task not in TASKS:
            raise InputError(f"unknown task {self.task!r}", hint=f"choose one of: {', '.join(TASKS)}")
        choices = [
            ("mixed-precision", self.mixed_precision, MIXED_PRECISIONS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("preset", self.preset, PRESETS),
            ("quantize", self.quantize, WEIGHTS),
            *(("track", name, TRACKERS) for name in self.track),
        ]
        for name, chosen, known in choices:
            if chosen is not None and chosen not in known:
                raise InputError(f"--{name} is {chosen!r}", hint=f"choose one of: {', '.join(known)}")
        if self.optimizer == "prodigy" and self.lora_plus != 1:
            raise InputError(
                "prodigy finds one rate for everything, so --lora-plus cannot change it for a part",
                hint="train without --lora-plus, or with --optimizer adamw",
            )
        if self.resume and self.restart:
            raise InputError("--resume goes on, --restart begins again: not both", hint="keep one of the two")
        if not self.base.strip():
            raise InputError("no base model is named", hint="name one, e.g. --base emoji-64")
        self._check_numbers()
        self._check_denoiser()
        self._check_text_encoder()
        self._check_new_tokens()
        self._check_dreambooth()

    def _check_numbers(self) -> None:
        at_least_one = {
            "steps": self.steps,
            "batch-size": self.batch_size,
            "accumulate": self.accumulation,
            "processes": self.processes,
            "rank": self.rank,
            "num-class-images": self.num_class_images,
        }
        for name, count in at_least_one.items():
            if count is not None and count < 1:
                raise InputError(f"--{name} is {count}", hint=f"give --{name} 1 or more")
        positive = {
            "lr": self.learning_rate,
            "alpha": self.alpha,
            "grad-norm": self.max_grad_norm,
            "lora-plus": self.lora_plus,
            "min-snr": self.min_snr,
            "text-encoder-lr": self.text_encoder_lr,
            "token-lr": self.token_lr,
        }
        for name, number in positive.items():
            # `not >` also catches NaN.
            if number is not None and not 0 < number < float("inf"):
                raise InputError(f"--{name} is {number}", hint=f"give --{name} above 0")
        fractions = {
            "warmup-fraction": self.warmup_fraction,
            "caption-dropout": self.caption_dropout,
        }
        for name, fraction in fractions.items():
            if not 0 <= fraction <= 1:
                raise InputError(f"--{name} is {fraction}", hint=f"give --{name} from 0 to 1")
        if self.hold_out is not None and not 0 <= self.hold_out <= 0.5:
            raise InputError(f"--hold-out is {self.hold_out}", hint="give --hold-out from 0 to 0.5")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}", hint="give --seed from 0 to 2**63 - 1")
        for name, every in {
            "sample-every": self.sample_every,
            "checkpoint-every": self.checkpoint_every,
        }.items():
            if every is not None and every < 0:
                raise InputError(f"--{name} is {every}", hint="give 0 or more steps")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"--ema is {self.ema}", hint="give it between 0 and 1, e.g. 0.99")
        if not 0 <= self.noise_offset < 1:
            raise InputError(f"--noise-offset is {self.noise_offset}", hint="give 0 to 1, e.g. 0.05")
        for name, weight in {"prior-weight": self.prior_weight, "weight-decay": self.weight_decay}.items():
            if not 0 <= weight < float("inf"):
                raise InputError(f"--{name} is {weight}", hint="give 0 or more")
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise InputError(
                f"--resolution is {self.resolution}", hint="give a multiple of 8 pixels, e.g. 64"
            )
        if not self.targets or not all(target.strip() for target in self.targets):
            raise InputError("no layer to adapt is named", hint="give e.g. --targets attention")

    def _check_denoiser(self) -> None:
        if self.quantize != "none" and (self.task == "segmentation" or self.dora):
            what = (
                "--dora, which measures the base's own"
                if self.dora
                else "segmentation, whose bases are small"
            )
            raise InputError(f"--quantize changes weights: not with {what}", hint="train without it")
        if self.aspect_buckets and self.task == "segmentation":
            raise InputError(
                "--aspect-buckets is for pictures that are drawn, not for segmentation",
                hint="train without it",
            )

    def _check_text_encoder(self) -> None:
        if self.task == "segmentation" and (self.train_text_encoder or self.text_encoder_lr):
            raise InputError("a segmentation base has no text encoder", hint="train without it")
        if self.text_encoder_lr is None:
            return
        by_preset = self.preset == "face" and self.train_text_encoder is None
        if not (self.train_text_encoder or by_preset):
            raise InputError(
                "--text-encoder-lr is given, but the text encoder does not train",
                hint="add --train-text-encoder",
            )
        if self.optimizer == "prodigy":
            raise InputError(
                "prodigy finds one rate for everything, so --text-encoder-lr cannot change it for a part",
                hint="train without --text-encoder-lr, or with --optimizer adamw",
            )

    def _check_new_tokens(self) -> None:
        if self.task == "segmentation" and (self.new_tokens or self.token_lr):
            raise InputError("a segmentation base reads no words", hint="train without --new-token")
        for name in self.tokens:
            if not is_token_name(name):
                raise InputError(f"a new token cannot be called {name!r}", hint='call it e.g. "<my-dog>"')
        if len(self.tokens) < len(self.new_tokens):
            raise InputError("a new token is given twice", hint="leave one of them out")
        if len(self.tokens) > MAX_TOKENS:
            raise InputError(f"{len(self.tokens)} new tokens are too many", hint=f"give {MAX_TOKENS} at most")
        if self.token_lr is not None and not self.new_tokens:
            raise InputError("--token-lr is given, but there is no new token", hint='add --new-token "<dog>"')
        if self.token_lr is not None and self.optimizer == "prodigy":
            raise InputError(
                "prodigy finds one rate for everything, so --token-lr cannot change it for a part",
                hint="train without --token-lr, or with --optimizer adamw",
            )
        for name in self.tokens if self.task == "dreambooth" else ():
            if name not in (self.instance_prompt or ""):
                raise InputError(
                    f"the instance prompt does not say {name}, so nothing would teach it",
                    hint=f'add it: --instance-prompt "a photo of {name} dog"',
                )

    def _check_dreambooth(self) -> None:
        if self.task == "dreambooth":
            if self.preset == "face" and not (self.class_prompt or "").strip():
                raise InputError(
                    "a face needs images of other people along with it, or every face becomes this one",
                    hint='add --class-prompt "a photo of a person"',
                )
            if not (self.instance_prompt or "").strip():
                raise InputError(
                    "dreambooth needs the prompt that names your subject",
                    hint='add --instance-prompt "a photo of tok dog"',
                )
            if self.class_data is not None and not (self.class_prompt or "").strip():
                raise InputError(
                    "class images need the prompt that names their class",
                    hint='add --class-prompt "a photo of a dog"',
                )
        elif self.preset:
            raise InputError(
                f"--preset {self.preset} is for one subject, not for {self.task}",
                hint=f"hubctl train dreambooth --base {self.base} --data {self.data} ...",
            )
        elif self.instance_prompt or self.class_prompt or self.class_data:
            raise InputError(
                f"{self.task} takes its captions from the data folder, not from a prompt",
                hint=f"hubctl train dreambooth --base {self.base} --data {self.data} ...",
            )
