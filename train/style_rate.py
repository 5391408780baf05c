"""`python -m train.style_rate PICTURE...`: what the judge takes each picture for, as JSON.

A process of its own, so that whoever asks needs no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import hubctl

JUDGE = Path(hubctl.__file__).parent / "bases" / "emoji-64-judge"


def judge_pictures(paths: Sequence[Path], judge_folder: Path = JUDGE) -> dict[str, object]:
    """The style of each picture file, by its path, and how often the judge is right on held-out real ones."""
    import numpy as np
    from PIL import Image

    from train.judge import SIDE_PX, load_judge

    judge = load_judge(judge_folder)
    pictures = [Image.open(path).convert("RGB").resize((SIDE_PX, SIDE_PX)) for path in paths]
    styles, _ = judge.predict(np.stack([np.asarray(picture) for picture in pictures]))
    config = json.loads((judge_folder / "config.json").read_text(encoding="utf-8"))
    return {
        "styles": {str(path): style for path, style in zip(paths, styles, strict=True)},
        "held_out_accuracy": config["figures"]["held_out"]["style"],
    }


if __name__ == "__main__":
    json.dump(judge_pictures([Path(word) for word in sys.argv[1:]]), sys.stdout)
