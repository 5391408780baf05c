"""What the diffusion tasks share: a frozen pipeline with an adapter in its denoiser, and in CLIP if asked.

Shapes: B images, C latent channels, H x W latent pixels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import get_peft_model_state_dict
from PIL import Image
from torch import nn

from hubctl.adapter.kohya import clip_path
from hubctl.adapter.new_tokens import TOKENIZERS
from hubctl.base_models import BaseModel
from hubctl.errors import InputError
from hubctl.hub.cache import ENCODED
from hubctl.modeling.new_tokens import load_new_tokens
from hubctl.modeling.pipelines import load_pipeline
from hubctl.modeling.quantize import quantize
from hubctl.modeling.variants import variant_alone
from hubctl.settings import environment
from train.adapt import CLIP_TARGETS, lora_config, require_useful_rank, resolve_targets, trained_in_float32
from train.buckets import Size, nearest_bucket
from train.dataset import fitted, open_image
from train.encoded import EncodedStore
from train.fused import fuse_lora
from train.recipe import current_versions
from train.tasks.denoisers import DENOISERS, Conditions, no_text
from train.tasks.grid import draw_looks
from train.tasks.latents import Latents, noise_like
from train.tasks.new_tokens import GrownTable, grow, save_new_tokens
from train.tasks.task import Setup
from train.tasks.texts import Texts, remember_large_encoder
from train.verify import require_same_answer, require_same_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE_STEPS = 20
ENCODE_BATCH = 16
JUDGED_IMAGES = 32
JUDGED_TIMESTEPS = 4
LOSS_NOTE = "`loss_*` is the denoising error of base and adapter on the same noise at the same timesteps."

Encoded = tuple[Latents, Texts]
"""Images, and what each of them shows."""


class _Parts(nn.Module):
    """The denoiser, with the text encoders that train beside it; asked, it is the denoiser."""

    def __init__(self, denoiser: nn.Module, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.denoiser, self.encoders = denoiser, nn.ModuleDict(encoders)

    def forward(self, *args: Any, **settings: Any) -> Any:
        return self.denoiser(*args, **settings)


class Diffusion:
    """A diffusers pipeline, frozen, with a LoRA adapter in its denoiser, and in its CLIPs if asked.

    `module` is all that trains; asked, it is the denoiser.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        family = setup.base.family
        self._kind = DENOISERS[family.name]
        # Small text encoders run once, or train: in float32.
        half = dict.fromkeys((family.denoiser, *self._kind.large_encoders), setup.frozen_dtype)
        self.pipeline = open_pipeline(
            setup.base, {"default": torch.float32, **half}, setup.device, weights=setup.config.quantize
        )
        self.denoiser: Any = getattr(self.pipeline, family.denoiser)
        targets = resolve_targets(self.denoiser, setup.config.targets, default_targets=family.default_targets)
        require_useful_rank(self.denoiser, targets, setup.plan.rank)
        self.denoiser.add_adapter(lora_config(setup.config, setup.plan, targets=targets))
        if setup.config.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self._store = _store(setup)
        self.encoders: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self.module: nn.Module = self.denoiser
        if setup.plan.train_text_encoder or setup.config.new_tokens:
            self.encoders = self._clips()
            self._prepare_encoders()
            self.module = _Parts(self.denoiser, self.encoders)
        trained_in_float32(self.module)
        fuse_lora(self.module)
        self.noise = self._kind.noise(self.pipeline.scheduler.config, setup.base.id)
        self.no_text = Texts(
            [""],
            lambda _: no_text(self._kind.encode, self.pipeline, setup.device),
            fixed=not self.encoders,
        )

    def _clips(self) -> dict[str, Any]:
        setup = self.setup
        encoders: dict[str, Any] = {
            name: encoder
            for name in setup.base.family.text_encoders
            if (encoder := getattr(self.pipeline, name)) is not None
        }
        if not encoders:
            raise InputError(
                f"{setup.base.id} comes without a CLIP text encoder to train",
                hint="train without --train-text-encoder and --new-token",
            )
        return encoders

    def _prepare_encoders(self) -> None:
        setup = self.setup
        for encoder in self.encoders.values() if setup.plan.train_text_encoder else ():
            require_useful_rank(encoder, CLIP_TARGETS, setup.plan.rank)
            encoder.add_adapter(lora_config(setup.config, setup.plan, targets=list(CLIP_TARGETS)))
        if setup.config.new_tokens:
            readers = [TOKENIZERS[name] for name in self.encoders]
            self._tokenizers = {name: copy.deepcopy(getattr(self.pipeline, name)) for name in readers}
            grow(self.pipeline, self.encoders, setup.config.tokens, setup.config.seed)
        if self._kind.large_encoders:
            remember_large_encoder(self.pipeline)

    # -- encoding, once --------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Sequence[Path | Image.Image], *, buckets: bool = False) -> Latents:
        """Latents of the images' middles at the plan's resolution, square or at shapes near their own."""
        by_size: dict[Size, list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(self._size(image, buckets), []).append(index)
        parts: dict[int, dict[str, torch.Tensor]] = {}
        for (width, height), indices in by_size.items():
            for start in range(0, len(indices), ENCODE_BATCH):
                batch = indices[start : start + ENCODE_BATCH]
                key = ["image", f"{width}x{height}", *(_digest(images[index]) for index in batch)]
                encode = partial(self._encode, [images[index] for index in batch], (width, height))
                found = self._store.get(key, encode, self.setup.device)
                parts |= {
                    index: {name: value[row] for name, value in found.items()}
                    for row, index in enumerate(batch)
                }
        vae = self.pipeline.vae
        scale = float(getattr(vae.config, "scaling_factor", None) or 1.0)
        shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        encoded = [parts[index] for index in range(len(images))]
        mean = [(part["mean"] - shift) * scale for part in encoded]
        return Latents(mean, [p["deviation"] * scale for p in encoded] if "deviation" in encoded[0] else None)

    def _size(self, image: Path | Image.Image, buckets: bool) -> Size:
        side = self.setup.plan.resolution_px
        return nearest_bucket(*_opened(image).size, side) if buckets else (side, side)

    def _encode(self, images: Sequence[Path | Image.Image], size: Size) -> dict[str, torch.Tensor]:
        arrays = np.stack([fitted(_opened(image), size) for image in images])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2)
        encoded = self.pipeline.vae.encode(pixels.to(self.setup.device, torch.float32) / 127.5 - 1)
        if hasattr(encoded, "latent_dist"):
            return {"mean": encoded.latent_dist.mean, "deviation": encoded.latent_dist.std}
        # AutoencoderTiny answers with the latents themselves, scaled already.
        return {"mean": encoded.latents}

    def texts(self, prompts: Sequence[str]) -> Texts:
        """The prompts, encoded as the pipeline itself does; only until `release_encoders`."""
        return Texts(prompts, self._read, fixed=not self.encoders)

    def _read(self, prompts: Sequence[str]) -> Conditions:
        def encode() -> Conditions:
            return self._kind.encode(self.pipeline, prompts, self.setup.device)

        return encode() if self.encoders else self._store.get(["text", *prompts], encode, self.setup.device)

    def release_encoders(self) -> None:
        """Let go of the text encoders that do not train: often they are larger than the rest."""
        for name in self._encoder_names:
            if name not in self.encoders:
                setattr(self.pipeline, name, None)

    @property
    def _encoder_names(self) -> tuple[str, ...]:
        return self.setup.base.family.text_encoders + self._kind.large_encoders

    # -- the loss --------------------------------------------------------------------------

    def denoising_loss(
        self,
        module: nn.Module,
        latents: torch.Tensor,
        conditions: Conditions,
        generator: torch.Generator,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Squared error of the prediction for each image, [B]; noise and timesteps from `generator`.

        What the network predicts (noise, velocity or the clean latents) is the base's own choice. With
        `places` the error is a measurement: neither weighted nor with an offset in its noise.
        """
        config = self.setup.config
        noise = noise_like(latents, generator)
        training = places is None
        if places is None:
            places = self.noise.places(len(latents), generator)
            if config.noise_offset:
                # https://www.crosslabs.org/blog/diffusion-with-offset-noise
                noise = noise + config.noise_offset * noise_like(latents[:, :, :1, :1], generator)
        noised = self.noise.add(latents, noise, places)
        noisy = noised.latents.to(self.setup.frozen_dtype)
        predicted = self._kind.predict(module, self.pipeline, noisy, noised.timesteps, self._cast(conditions))
        errors = (predicted.float() - noised.target.float()).pow(2).mean(dim=(1, 2, 3))
        if training and config.min_snr is not None:
            errors = errors * self.noise.min_snr_weights(places, config.min_snr).to(errors)
        return errors

    def compare(self, latents: Latents, texts: Texts) -> dict[str, float]:
        """The loss of the base and of the adapter on the same noise at the same timesteps."""
        losses = []
        for adapted in (False, True):
            with self._adapter(adapted):
                losses.append(self.fixed_loss(latents, texts, JUDGED_IMAGES))
        return {"loss_base": losses[0], "loss_adapter": losses[1]}

    @torch.no_grad()
    def fixed_loss(self, latents: Latents, texts: Texts, count: int) -> float:
        """Mean denoising error on the first `count` images, with the same noise and timesteps each time."""
        generator = torch.Generator().manual_seed(self.setup.config.seed)
        self.module.eval()
        total = 0.0
        for part in range(JUDGED_TIMESTEPS):
            place = int(self.noise.count * (part + 0.5) / JUDGED_TIMESTEPS)
            for batch in latents.alike(count, ENCODE_BATCH):
                loss = self.denoising_loss(
                    self.denoiser,
                    latents.draw(batch, generator),
                    texts.take(batch),
                    generator,
                    torch.full((len(batch),), place),
                )
                total += float(loss.sum())
        return total / (JUDGED_TIMESTEPS * min(len(latents), count))

    def watch(self, trained: Encoded, watched: Encoded | None) -> tuple[float, float] | None:
        """Denoising error on the first trained images and on all watched, with the same noise each time."""
        if watched is None:
            return None
        count = len(watched[0])
        return self.fixed_loss(*trained, count), self.fixed_loss(*watched, count)

    # -- looking at it ---------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, prompts: Texts, count: int, *, adapted: bool = True, seed: int = 0) -> list[Image.Image]:
        """`count` pictures, of a prompt each, by the stock pipeline; picture i starts from `seed` + i."""
        was_training = self.module.training
        self.module.eval()
        side = self.setup.plan.resolution_px
        pictures: list[Image.Image] = []
        with self._adapter(adapted):
            for start in range(0, count, ENCODE_BATCH):
                batch = range(start, min(start + ENCODE_BATCH, count))
                settings: dict[str, Any] = self._cast(prompts.take(batch))
                if self._kind.negative:
                    away = self._cast(self.no_text.take([0] * len(batch)))
                    settings |= {f"negative_{name}": value for name, value in away.items()}
                with self._encoders_aside():
                    pictures += self.pipeline(
                        height=side,
                        width=side,
                        num_inference_steps=SAMPLE_STEPS,
                        guidance_scale=self._kind.guidance,
                        generator=[torch.Generator().manual_seed(seed + place) for place in batch],
                        **settings,
                    ).images
        self.module.train(was_training)
        return pictures

    def drawn_by_base(self, prompt: str, texts: Texts, count: int) -> list[Image.Image]:
        """`count` pictures of one prompt by the untouched base, kept as what is encoded."""
        config, side = self.setup.config, self.setup.plan.resolution_px
        key = ["drawn", prompt, *map(str, (count, config.seed, side, SAMPLE_STEPS, config.quantize))]
        key += config.new_tokens  # which the prompt may hold

        def draw() -> dict[str, torch.Tensor]:
            pictures = self.draw(texts, count, adapted=False, seed=config.seed)
            return {"pictures": torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))}

        found = self._store.get(key, draw, torch.device("cpu"))
        return [Image.fromarray(picture) for picture in found["pictures"].numpy()]

    def sample(self, step: int, prompts: Sequence[str], texts: Texts, folder: Path) -> Path:
        """Add a column to the grid of samples: the base for step 0, then the adapter as it grows."""
        pictures = self.draw(texts, len(texts), seed=self.setup.config.seed)
        for number, picture in enumerate(pictures, start=1):
            picture.save(folder / f"sample-{number}.png")
        return draw_looks(folder, step, pictures, prompts, untrained="base")

    def _cast(self, conditions: Conditions) -> Conditions:
        return {name: value.to(self.setup.frozen_dtype) for name, value in conditions.items()}

    @torch.no_grad()
    def verify(self, folder: Path, latents: Latents, texts: Texts) -> float:
        """Ask what was trained, then a fresh base with the saved adapter, the same: their difference.

        Raises:
            IntegrityError: some tensors are not loaded again, or the answers differ.
        """
        dtype = self.setup.frozen_dtype
        generator = torch.Generator().manual_seed(0)
        clean = latents.draw([0], generator)
        noised = self.noise.add(clean, noise_like(clean, generator), torch.tensor([self.noise.count // 2]))
        asked = noised.latents.to(dtype), noised.timesteps
        self.module.eval()
        conditions = self._cast(texts.take([0]))
        trained = self._kind.predict(self.denoiser, self.pipeline, *asked, conditions).float()
        tensors = {name: get_peft_model_state_dict(part) for name, part in self._adapted().items()}
        self.module.to("cpu")  # two of them would not fit where one just does
        parts = self._adapted() | self.encoders
        fresh = {name: self._fresh(name, type(part)) for name, part in parts.items()}
        pipeline = type(self.pipeline)(**self.pipeline.components | fresh | self._tokenizers)
        pipeline.load_lora_weights(str(folder))
        load_new_tokens(pipeline, folder)
        for name, part in fresh.items():
            if name in tensors:
                (adapter,) = part.peft_config
                # Diffusers has made the table larger, which peft would take for a trained one.
                loaded = get_peft_model_state_dict(part, adapter_name=adapter, save_embedding_layers=False)
                require_same_tensors(tensors[name], loaded)
            part.eval()
        for name in (*self.encoders, *self._tokenizers):
            setattr(self.pipeline, name, getattr(pipeline, name))  # the texts are encoded by this pipeline
        conditions = self._cast(texts.take([0]))
        component = self.setup.base.family.denoiser
        answer = self._kind.predict(fresh[component], pipeline, *asked, conditions).float()
        return require_same_answer(trained, answer, dtype)

    def _fresh(self, name: str, kind: Any) -> Any:
        """The component `name` as the base has it, in the precision that it is trained in."""
        setup = self.setup
        dtype = torch.float32 if name in self.encoders else setup.frozen_dtype
        folder = setup.base.path / name
        part = kind.from_pretrained(folder, dtype=dtype, variant=variant_alone(folder))
        if name not in self.encoders:
            quantize(part, setup.config.quantize)
        return part.to(setup.device)

    def _adapted(self) -> dict[str, Any]:
        """The parts of the pipeline that carry the adapter, by their names there."""
        encoders = self.encoders if self.setup.plan.train_text_encoder else {}
        return {self.setup.base.family.denoiser: self.denoiser, **encoders}

    def _tables(self) -> list[GrownTable]:
        """The text encoders' tables with new tokens."""
        tables = (encoder.get_input_embeddings() for encoder in self.encoders.values())
        return [table for table in tables if isinstance(table, GrownTable)]

    @contextmanager
    def _adapter(self, enabled: bool) -> Iterator[None]:
        if enabled:
            yield
            return
        for part in self._adapted().values():
            part.disable_adapters()
        for table in self._tables():
            table.learnt = False
        try:
            yield
        finally:
            for part in self._adapted().values():
                part.enable_adapters()
            for table in self._tables():
                table.learnt = True

    @contextmanager
    def _encoders_aside(self) -> Iterator[None]:
        """Without text encoders a pipeline computes in its denoiser's precision, not in their float32."""
        encoders = {name: getattr(self.pipeline, name, None) for name in self._encoder_names}
        for name in encoders:
            setattr(self.pipeline, name, None)
        try:
            yield
        finally:
            for name, encoder in encoders.items():
                setattr(self.pipeline, name, encoder)

    # -- the file --------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors` in float32, alpha and rank in its header.

        Without that header diffusers takes alpha = rank, and the adapter's strength is lost.
        """
        contents: dict[str, Any] = {}
        for name, part in self._adapted().items():
            tensors = get_peft_model_state_dict(part)
            if name in self.encoders:
                # With the level that transformers 5 took out of CLIP: older ones need it, newer drop it.
                tensors = {clip_path(path): value for path, value in tensors.items()}
            settings = part.peft_config["default"].to_dict()
            # peft keeps the targets in a set, whose order differs from run to run.
            settings["target_modules"] = sorted(settings["target_modules"])
            contents |= {f"{name}_lora_layers": tensors, f"{name}_lora_adapter_metadata": settings}
        self.pipeline.save_lora_weights(folder, **contents)
        if self.setup.config.new_tokens:
            save_new_tokens(folder, self.encoders, list(self.setup.config.tokens))


def _store(setup: Setup) -> EncodedStore:
    facts = {
        "base": setup.base.sha256,
        "device": setup.device.type,
        "dtype": str(setup.frozen_dtype),
        "versions": current_versions(),
        "reading": 2,  # of files into pixels; raised when it changes, since entries go by the files' bytes
    }
    return EncodedStore(environment().cache / ENCODED, facts)


def _opened(image: Path | Image.Image) -> Image.Image:
    return open_image(image) if isinstance(image, Path) else image


def _digest(image: Path | Image.Image) -> str:
    if isinstance(image, Path):
        return hashlib.sha256(image.read_bytes()).hexdigest()
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def open_pipeline(
    base: BaseModel, dtypes: Mapping[str, torch.dtype], device: torch.device, *, weights: str = "none"
) -> Any:
    """The pipeline, frozen and on the device, in a precision for each component; its VAE must have float32.

    `weights` is the kind that the denoiser's linear layers get (`hubctl.modeling.quantize`).

    A VAE in half precision can answer NaN (https://github.com/huggingface/diffusers/issues/4736); so its
    decoder gets float32 from samples too.
    """
    # The checker would blacken training samples.
    pipeline = load_pipeline(base.path, dtypes, without=("safety_checker",))
    pipeline.set_progress_bar_config(disable=True)
    quantize(getattr(pipeline, base.family.denoiser), weights)  # before the device has to hold all of it
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
            component.to(device)
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda latents, *rest, **settings: decode(latents.float(), *rest, **settings)
    return pipeline
