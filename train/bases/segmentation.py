"""Trains emoji-64-seg: a small SegFormer that tells pasted emoji from the background.

Shapes: pictures [B, 3, 128, 128] normalised; masks [B, 128, 128], 1 where an object is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from train.bases.cutouts import SIDE_PX, CutOuts, load_cut_outs
from train.bases.precision import autocast
from train.bases.resume import load_checkpoint, rate_at, save_checkpoint, set_rate

LABELS = {0: "background", 1: "object"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_segformer() -> SegformerForSemanticSegmentation:
    """Makes the untrained model: SegFormer-B0's plan, two thirds as wide."""
    config = SegformerConfig(
        num_encoder_blocks=4,
        depths=[2, 2, 2, 2],
        hidden_sizes=[24, 48, 96, 160],
        num_attention_heads=[1, 2, 4, 5],
        sr_ratios=[8, 4, 2, 1],
        decoder_hidden_size=128,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        id2label=LABELS,
        label2id={name: index for index, name in LABELS.items()},
        image_size=SIDE_PX,
    )
    return SegformerForSemanticSegmentation(config)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """What SegformerImageProcessor does to pixel values 0..1."""
    return (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def loss_of(
    model: SegformerForSemanticSegmentation, pictures: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy at full size."""
    with autocast():
        logits = model(pixel_values=normalise(pictures)).logits
    full = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear")
    return F.cross_entropy(full, masks)


@torch.no_grad()
def object_iou(model: SegformerForSemanticSegmentation, cut_outs: CutOuts, batches: int = 8) -> float:
    """Intersection over union of the object class over fresh scenes of these cut-outs."""
    generator = torch.Generator().manual_seed(7)
    hits = total = 0
    model.eval()
    for _ in range(batches):
        pictures, masks = cut_outs.scenes(32, generator)
        logits = model(pixel_values=normalise(pictures)).logits
        found = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear").argmax(1)
        hits += int((found & masks).sum())
        total += int((found | masks).sum())
    model.train()
    return hits / max(total, 1)


def save_folder(model: SegformerForSemanticSegmentation, folder: Path) -> None:
    """Saves the float16 model and its image processor."""
    half = build_segformer()
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(folder)
    processor = SegformerImageProcessorPil(
        size={"height": SIDE_PX, "width": SIDE_PX},
        image_mean=list(MEAN),
        image_std=list(STD),
        do_reduce_labels=False,
    )
    processor.save_pretrained(folder)


def main() -> None:
    """Trains for a planned number of minutes, resuming where it stopped, then saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--export", type=Path, required=True, help="model folder to write")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_segformer()
    if args.minutes == 0:
        save_folder(model, args.export)
        return
    train, held_out = load_cut_outs(args.data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.01, fused=True)
    state = load_checkpoint(args.out) or {"step": 0, "spent_s": 0.0, "losses": []}
    if "model" in state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator().manual_seed(state["step"])
    began, planned_s = time.monotonic() - state["spent_s"], args.minutes * 60
    model.train()
    recent: list[float] = []
    while state["spent_s"] < planned_s:
        set_rate(optimizer, rate_at(state["spent_s"] / planned_s, peak=args.rate, warm_up=0.05))
        loss = loss_of(model, *train.scenes(args.batch, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        state["step"] += 1
        state["spent_s"] = time.monotonic() - began
        if state["step"] % 100 == 0 or state["spent_s"] >= planned_s:
            state["losses"].append((state["step"], sum(recent) / len(recent)))
            recent = []
            state["iou"] = object_iou(model, held_out, batches=2)
            report = f"loss {state['losses'][-1][1]:.4f} iou {state['iou']:.3f}"
            print(f"step {state['step']} {state['spent_s']:.0f} s {report}", flush=True)
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(args.out, {**state, **parts})
    print("held-out iou", object_iou(model, held_out), flush=True)
    save_folder(model, args.export)


if __name__ == "__main__":
    main()
