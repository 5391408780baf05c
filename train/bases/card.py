"""Writes each base folder's README.md (model card) and NOTICE from the figures beside them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

NOTICE = """\
Pictures used in training, none of which is contained in this folder:
- Noto Emoji (Google), Apache License 2.0, from the npm package emoji-datasource-google 16.0.0
- Twemoji (Twitter and contributors), CC-BY 4.0, https://creativecommons.org/licenses/by/4.0/,
  from the npm package emoji-datasource-twitter 16.0.0
{extra}Names (captions) and subgroups:
- OpenMoji 17.0.0 (the OpenMoji project, https://openmoji.org), CC BY-SA 4.0,
  https://creativecommons.org/licenses/by-sa/4.0/
"""

_HEADER = """\
---
license: cc-by-sa-4.0
library_name: {library}
pipeline_tag: {task}
tags: [emoji, tiny, cpu{tag}]
{more}---

# {name}

"""

_INFERENCE = """\
inference:
  parameters:
    num_inference_steps: {steps}
    guidance_scale: {guidance}
"""
"""What a server gives to requests that do not say: what the figures were drawn with."""

_PICTURES = """\
## Pictures it has seen

Noto (Apache-2.0) and Twemoji (CC-BY 4.0), 1,412 emoji of each at 64 px; no flags, symbols or skin-tone
variants. Names from OpenMoji (CC BY-SA 4.0). One emoji in twenty is held out by a hash of its code.
Attributions: `NOTICE`. Recipe: `train/bases/README.md`.
"""

_TEXT_TO_IMAGE = """\
A Stable Diffusion pipeline of {million:.0f} million parameters that draws 64 px emoji from their names, made
to train and serve adapters on two CPU cores. It knows emoji and nothing else; it is for trying things out.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("hubctl/bases/emoji-64")
pipeline("red apple, noto style", num_inference_steps=25, guidance_scale={guidance}).images[0]
```

Keep the guidance between 1 and 3: it knows its captions so well that more only overdraws them.
Prompts: `"<name>, noto style"` or `"<name>, twemoji style"`. Names are Unicode's ("fire engine"), and for
some 150 everyday emoji plain words too ("car", "tree").

![Sixteen prompts in both styles](samples.png)

Noto above, Twemoji below: {prompts}.

## Parts

| part | what |
| --- | --- |
| vae | AutoencoderTiny, 64 px to 4 x 16 x 16; channel means -0.5 to 0.5, spreads 1 to 1.4; scaling factor 1 |
| text_encoder | CLIPTextModel, 192 wide, 3 layers, 24 tokens; own byte-level BPE of 2,015 pieces |
| unet | (64, 96, 192, 256), cross-attention at 8x8, 4x4, 2x2; the caption also joins the time embedding |
| scheduler | DDIM, velocity, trailing timesteps; linear betas leave 0.6 % of the signal's amplitude |

## Training

Autoencoder: {vae}. Text encoder alone, from a caption to its picture's principal components: {text}.
UNet, and text encoder more slowly: {steps} steps of {batch} pictures, 10 % empty captions, AdamW at
{rate} falling to nought, average of weights. {plan}

![Training loss](loss.png)

## Figures

The judge is `emoji-64-judge`; pictures drawn with {inference}.

| captions | pictures | right style | right subgroup |
| --- | --- | --- | --- |
{rows}

"""

_SEGMENTATION = """\
A SegFormer of {million:.1f} million parameters (B0's plan, narrower) that tells objects from background at
128 px: `background`, `object`. A base for adapters, not a product.

Trained {steps} steps of 16 scenes: one or two emoji pasted, scaled, turned and mirrored on drawn
backgrounds. Object IoU on scenes of held-out emoji: **{iou:.3f}**.

"""

_JUDGE = """\
A classifier of 0.6 million parameters for 64 px pictures: style ({styles}) and one of {groups} OpenMoji
subgroups. It learnt from real pictures passed through emoji-64's autoencoder, so that blur alone does not
sway it. Read it with `train.judge.load_judge`.

| pictures | right style | right subgroup |
| --- | --- | --- |
| training emoji | {training[style]:.1%} | {training[subgroup]:.1%} |
| held-out emoji | {held_out[style]:.1%} | {held_out[subgroup]:.1%} |

It alone has also seen OpenMoji's black line drawings, except those of the demo's 140 captions.

"""


def text_to_image_card(folder: Path, training: dict[str, Any], prompts: str) -> str:
    """The card of emoji-64 from judge.json and the training figures."""
    judged = json.loads((folder / "judge.json").read_text())
    rows = [
        f"| {kind.replace('_', ' ')} | {r['pictures']} | {r['style']:.0%} | {r['subgroup']:.0%} |"
        for kind, r in judged.items()
        if kind.endswith("captions")
    ]
    inference = "{steps} DDIM steps, guidance {guidance}".format(**judged["inference"])
    header = _HEADER.format(
        library="diffusers",
        task="text-to-image",
        tag=", stable-diffusion",
        more=_INFERENCE.format(**judged["inference"]),
        name="emoji-64",
    )
    guidance = judged["inference"]["guidance"]
    body = _TEXT_TO_IMAGE.format(
        rows="\n".join(rows), inference=inference, guidance=guidance, prompts=prompts, **training
    )
    return header + body + _PICTURES


def segmentation_card(figures: dict[str, Any]) -> str:
    """The card of emoji-64-seg."""
    header = _HEADER.format(
        library="transformers", task="image-segmentation", tag="", more="", name="emoji-64-seg"
    )
    return header + _SEGMENTATION.format(**figures) + _PICTURES


def judge_card(folder: Path) -> str:
    """The card of emoji-64-judge from its config.json."""
    config = json.loads((folder / "config.json").read_text())
    body = _JUDGE.format(
        styles=", ".join(config["styles"]),
        groups=len(config["subgroups"]),
        training=config["figures"]["training"],
        held_out=config["figures"]["held_out"],
    )
    header = _HEADER.format(
        library="pytorch", task="image-classification", tag="", more="", name="emoji-64-judge"
    )
    return header + body + _PICTURES


def main() -> None:
    """Writes all three cards; `figures.json` in a base folder holds what training reported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=Path, required=True)
    args = parser.parse_args()
    base, seg, judge = (args.bases / name for name in ("emoji-64", "emoji-64-seg", "emoji-64-judge"))
    training = json.loads((base / "figures.json").read_text())
    cards = {
        base: text_to_image_card(base, training, training.pop("prompts")),
        seg: segmentation_card(json.loads((seg / "figures.json").read_text())),
        judge: judge_card(judge),
    }
    lines = "- OpenMoji black drawings (the OpenMoji project), CC BY-SA 4.0\n"
    for folder, card in cards.items():
        (folder / "README.md").write_text(card)
        (folder / "NOTICE").write_text(NOTICE.format(extra=lines if folder == judge else ""))


if __name__ == "__main__":
    main()
