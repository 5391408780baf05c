"""`hubctl eval` against torchmetrics, transformers' own CLIP, and the Hub's reading of a card."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hubctl.adapter.card import Result, with_result
from hubctl.errors import DataError, InputError
from tests.cli import run_cli
from tests.train import tiny
from tests.train.conftest import Trained
from train.evaluation.config import EvalConfig, Report
from train.evaluation.run import evaluate
from train.events import Judged, Warned


def judged(config: EvalConfig) -> tuple[Report, list[Any]]:
    events = evaluate(config)
    seen: list[Any] = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return end.value, seen


@pytest.fixture
def adapter(tmp_path: Path, trimap: Trained) -> Path:
    return Path(shutil.copytree(trimap.folder, tmp_path / "trimap"))


def test_masks_are_judged_as_torchmetrics_does_on_what_transformers_answers(
    tmp_path: Path, trimap: Trained, adapter: Path, masked: Path
) -> None:
    from peft import PeftModel
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
    from torchmetrics.segmentation import DiceScore
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    data = Path(shutil.copytree(masked, tmp_path / "data"))
    for path in sorted((data / "test" / "masks").iterdir()):  # part of it counts for nothing
        mask = np.asarray(Image.open(path)).copy()
        mask[:, :5] = 255
        Image.fromarray(mask).save(path)
    report, events = judged(EvalConfig(adapter=adapter, data=data, output=tmp_path / "report"))
    assert [event.done for event in events if isinstance(event, Judged)] == [1, 2]

    processor: Any = AutoImageProcessor.from_pretrained(trimap.base, backend="pil")
    model: Any = PeftModel.from_pretrained(
        AutoModelForSemanticSegmentation.from_pretrained(
            trimap.base, num_labels=3, ignore_mismatched_sizes=True
        ),
        str(adapter),
    ).eval()
    iou = MulticlassJaccardIndex(3, average=None, ignore_index=255)
    accuracy = MulticlassAccuracy(3, average="micro", ignore_index=255)
    dice = DiceScore(3, average=None, aggregation_level="global", input_format="index")
    for path in sorted((data / "test" / "images").iterdir()):
        image = Image.open(path)
        with torch.no_grad():
            answer = model(**processor(image, return_tensors="pt"))
        (labels,) = processor.post_process_semantic_segmentation(answer, [image.size[::-1]])
        true = torch.from_numpy(np.asarray(Image.open(data / "test" / "masks" / path.name)).copy()).long()
        iou.update(labels[None], true[None])
        accuracy.update(labels[None], true[None])
        counted = true != 255
        dice.update(labels[counted][None], true[counted][None])
    found = report.metrics
    classes = ("outside", "border", "inside")
    assert [found.get(f"iou_{name}", 0.0) for name in classes] == pytest.approx(iou.compute().tolist())
    assert [found.get(f"dice_{name}", 0.0) for name in classes] == pytest.approx(
        dice.compute().flatten().nan_to_num().tolist()
    )
    assert found["pixel_accuracy"] == pytest.approx(float(accuracy.compute()))
    assert (report.split, report.images, report.pictures) == ("test", 2, ["overlays.png"])
    assert json.loads((tmp_path / "report" / "eval.json").read_text())["metrics"] == found


def test_classes_are_found_by_name_and_unknown_ones_refused(
    tmp_path: Path, adapter: Path, masked: Path
) -> None:
    before, _ = judged(EvalConfig(adapter=adapter, data=masked, output=tmp_path / "a", card=False))
    data = Path(shutil.copytree(masked, tmp_path / "data"))
    for path in data.rglob("masks/*.png"):
        Image.fromarray(2 - np.asarray(Image.open(path))).save(path)
    (data / "labels.json").write_text('{"0": "inside", "1": "border", "2": "outside"}')
    after, _ = judged(EvalConfig(adapter=adapter, data=data, output=tmp_path / "b", card=False))
    assert after.metrics == before.metrics
    (data / "labels.json").write_text('{"0": "inside", "1": "border", "2": "sky"}')
    with pytest.raises(DataError, match="class 'sky', which the adapter does not know"):
        judged(EvalConfig(adapter=adapter, data=data, output=tmp_path / "c", card=False))
    assert not (tmp_path / "c").exists()


def test_masks_of_another_number_of_classes_are_refused(tmp_path: Path, adapter: Path) -> None:
    bare = Path(shutil.copytree(adapter, tmp_path / "bare"))
    for name in ("hubctl.json", "recipe.lock"):
        (bare / name).unlink()
    data = tiny.masked_folder(tmp_path / "two", classes=2)
    with pytest.raises(DataError, match=r"the adapter has 3 classes, the masks in .* name 2"):
        judged(EvalConfig(adapter=bare, data=data, output=tmp_path / "c", card=False))


# -- pictures ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, diffusion_base: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = len(json.loads((diffusion_base / "tokenizer" / "vocab.json").read_text()))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=words, max_position_embeddings=12, bos_token_id=0, eos_token_id=1,
                          pad_token_id=1, projection_dim=8, **small)  # fmt: skip
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=8, **small)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    ).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    shutil.copytree(diffusion_base / "tokenizer", folder, dirs_exist_ok=True)
    return folder


def test_pictures_are_judged_by_clip_as_transformers_has_it(
    tmp_path: Path, style: Trained, captioned: Path, clip: Path
) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    from hubctl.modeling.pipelines import load_pipeline

    config = EvalConfig(
        adapter=style.folder, data=captioned, output=tmp_path / "report", embedder=str(clip), card=False
    )
    report, events = judged(config)
    assert any(
        "trained on these very images" in event.message for event in events if isinstance(event, Warned)
    )
    pipeline: Any = load_pipeline(style.base, torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(style.folder), adapter_name="a")
    pipeline.set_adapters(["a"], [0.5])
    prompts = ["red apple", "blue apple", "green apple", "red apple"]
    pictures = pipeline(
        prompts, height=32, width=32, num_inference_steps=20, guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
    ).images  # fmt: skip
    model = CLIPModel.from_pretrained(clip).eval()
    processor = AutoImageProcessor.from_pretrained(clip, backend="pil")
    tokens = AutoTokenizer.from_pretrained(clip)(prompts, padding=True, return_tensors="pt")
    truth = [Image.open(captioned / f"{number}.png") for number in range(4)]
    with torch.no_grad():
        drawn = model(**processor(pictures, return_tensors="pt"), **tokens)
        real = model(**processor(truth, return_tensors="pt"), **tokens)
    half = report.rows[1]
    assert half["scale"] == 0.5
    assert half["similarity"] == pytest.approx(
        float((drawn.image_embeds @ real.image_embeds.T).mean()), abs=1e-4
    )
    expected = float((drawn.image_embeds * drawn.text_embeds).sum(-1).mean())
    assert half["prompt_adherence"] == pytest.approx(expected, abs=1e-4)
    assert report.rows[0]["changed_pixels"] == 0
    assert float(str(report.rows[2]["changed_pixels"])) > float(str(half["changed_pixels"])) > 0
    assert report.metrics["drift"] >= 0
    assert report.metrics["base_similarity"] == report.rows[0]["similarity"]
    assert report.pictures == ["drift.png", "scales.png"]
    again, _ = judged(dataclasses.replace(config, output=tmp_path / "again"))
    assert again.metrics == report.metrics


def test_without_an_embedder_it_says_so_and_a_wrong_one_is_refused(
    tmp_path: Path, subject: Trained, segmentation_base: Path
) -> None:
    config = EvalConfig(
        adapter=subject.folder, data=subject.config.data, output=tmp_path / "report", images=2, card=False
    )
    report, events = judged(config)
    assert any("nothing here can judge likeness" in e.message for e in events if isinstance(e, Warned))
    assert set(report.metrics) == {"drift_pixels"}
    with pytest.raises(InputError, match="cannot judge pictures: its model type is 'segformer'"):
        judged(dataclasses.replace(config, output=tmp_path / "no", embedder=str(segmentation_base)))


def test_pictures_without_captions_need_a_prompt(tmp_path: Path, style: Trained) -> None:
    (tmp_path / "plain").mkdir()
    tiny.picture(1).save(tmp_path / "plain" / "a.png")
    config = EvalConfig(adapter=style.folder, data=tmp_path / "plain", output=tmp_path / "report", card=False)
    with pytest.raises(InputError, match="nobody knows what to draw"):
        judged(config)
    report, _ = judged(dataclasses.replace(config, prompt="red apple"))
    assert report.images == 1


def test_the_embedded_judge_knows_the_drawings_again() -> None:
    from hubctl.demo.data import DRAWINGS
    from train.evaluation.embedders import JudgeEmbedder
    from train.style_rate import JUDGE

    pictures = [Image.open(path).convert("RGB") for path in sorted(DRAWINGS.glob("*.png"))[:20]]
    embedder = JudgeEmbedder(JUDGE)
    same = embedder.figures(pictures, [""] * 20, pictures)
    assert same["same_style"] >= 0.9
    assert same["prompt_adherence"] == 1
    noise = [Image.effect_noise((64, 64), 90).convert("RGB") for _ in pictures]
    other = embedder.figures(noise, [""] * 20, pictures)
    assert other["similarity"] < same["similarity"]
    assert other["prompt_adherence"] < 0.5


# -- the card ----------------------------------------------------------------------------------


def test_the_card_gets_the_figures_once_and_keeps_the_rest(
    tmp_path: Path, adapter: Path, masked: Path
) -> None:
    from huggingface_hub import ModelCard

    ran = run_cli("eval", adapter, "--data", masked, "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    metrics = json.loads(ran.out)["metrics"]
    again = run_cli("eval", adapter, "--data", masked, "--overwrite", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "written into" in again.err
    text = (adapter / "README.md").read_text()
    assert text.count("## Judged on masked (test)") == 1
    assert "## Settings" in text
    results = {
        (entry.dataset_name, entry.metric_type): entry.metric_value
        for entry in ModelCard.load(adapter / "README.md").data.eval_results
    }
    assert results["masked (test)", "miou"] == pytest.approx(metrics["miou"], abs=1e-4)
    assert ("held-out part of the training data", "miou") in results
    assert (adapter / "eval" / "overlays.png").is_file()


@pytest.mark.parametrize(
    "card", ["", "just words", "---\nlicense: mit\n---\n\n# A\n", "---\nmodel-index: 3\n---\ntext\n"]
)
def test_any_card_takes_figures_and_taking_them_again_changes_nothing(card: str) -> None:
    result = Result(task="text-to-image", dataset="d", metrics={"drift": 0.25}, pictures=["eval/a.png"])
    once = with_result(card, result, name="x")
    assert with_result(once, result, name="x") == once
    assert card.rpartition("---")[2].strip() in once
    other = dataclasses.replace(result, dataset="e", metrics={"drift": 0.5})
    both = with_result(once, other, name="x")
    assert both.count("## Judged on") == 2
    assert "0.25" in both


def test_dino_is_asked_for_its_class_token(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    from train.evaluation.embedders import open_embedder

    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    ).eval()
    model.save_pretrained(tmp_path)
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    processor.save_pretrained(tmp_path)
    pictures = [tiny.picture(seed) for seed in range(3)]
    with torch.no_grad():
        expected = model(**processor(pictures, return_tensors="pt")).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    found = open_embedder(tmp_path, "dino", torch.device("cpu"))
    torch.testing.assert_close(found.features(pictures), expected)
    assert found.figures(pictures, [""] * 3, pictures[:1]) == {
        "similarity": pytest.approx(float((expected @ expected[0]).mean()))
    }
