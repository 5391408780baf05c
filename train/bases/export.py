"""Writes what text-to-image training has reached so far as a pipeline folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from train.bases.captions import train_tokenizer
from train.bases.emoji import load_emoji
from train.bases.latents import load_vae
from train.bases.pipeline import save_pipeline
from train.bases.resume import load_checkpoint
from train.bases.text_to_image import TextToImage


def export(data: Path, vae_checkpoint: Path, checkpoint: Path, out: Path) -> int:
    """Saves the running average of a checkpoint; returns the step it is from."""
    state = load_checkpoint(checkpoint)
    if state is None:
        raise SystemExit(f"no checkpoint at {checkpoint}; run train.bases.text_to_image first")
    tokenizer = train_tokenizer(load_emoji(data))
    vae = load_vae(vae_checkpoint)
    model = TextToImage(tokenizer, vae.config.latent_channels)
    model.load_state_dict(state["average"])
    save_pipeline(out, vae=vae, unet=model.unet, text_encoder=model.text_encoder, tokenizer=tokenizer)
    return int(state["step"])


def main() -> None:
    """Exports; may run while training goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="finished autoencoder")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    args = parser.parse_args()
    step = export(args.data, args.vae, args.checkpoint, args.out)
    print(f"{args.out}: step {step}")


if __name__ == "__main__":
    main()
