"""Words that a training invents, and what diffusers alone makes of the files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hubctl.adapter.layout import read_layout
from hubctl.errors import InputError
from hubctl.families import detect_family
from hubctl.modeling.pipelines import load_pipeline
from tests.serve.tiny_pipelines import write_pipeline
from tests.train.conftest import Trained, run
from tests.train.samples import TOLERANCE, differ, drawn, first_sample
from tests.train.test_plan import plan
from train.config import TrainConfig
from train.evaluation.config import EvalConfig
from train.evaluation.run import evaluate
from train.events import Evaluated
from train.run import train

KEYS = ("clip_l", "clip_g")
PROMPT = "a photo of <hat> <my.dog>"


def settings(base: Path, data: Path, output: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "task": "dreambooth", "base": str(base), "data": data, "output": output, "steps": 20,
            "batch_size": 4, "rank": 4, "learning_rate": 1e-2, "token_lr": 0.5, "resolution": 32,
            "instance_prompt": PROMPT, "new_tokens": ("<hat>", "<my.dog>=apple"), **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("bases") / "sd1", "sd1")


@pytest.fixture(scope="module")
def hat(sd1: Path, captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(settings(sd1, captioned, tmp_path_factory.mktemp("hat") / "hat"))


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "flux"])
@pytest.mark.parametrize("with_text", [False, True])
def test_words_are_learnt_and_diffusers_alone_draws_the_same(
    tmp_path: Path, captioned: Path, kind: str, with_text: bool
) -> None:
    base = write_pipeline(tmp_path / "base", kind)
    trained = run(settings(base, captioned, tmp_path / "out", train_text_encoder=with_text))
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert metrics["loss_adapter"] < metrics["loss_base"]
    tokens = read_layout(trained.folder).tokens
    assert tokens is not None
    assert tokens.names == ("<hat>", "<my.dog>")
    assert tokens.keys.keys() == set(detect_family(base).text_encoders)
    pipeline: Any = load_pipeline(base, torch.float32)
    pipeline.load_lora_weights(str(trained.folder))
    as_letters = drawn(pipeline, PROMPT, kind)
    vectors = load_file(trained.folder / "embeddings.safetensors")
    for key, which in zip(KEYS, ("", "_2"), strict=True):
        if key in vectors:
            pipeline.load_textual_inversion(
                vectors[key],
                token=["<hat>", "<my.dog>"],
                text_encoder=getattr(pipeline, f"text_encoder{which}"),
                tokenizer=getattr(pipeline, f"tokenizer{which}"),
            )
    picture = drawn(pipeline, PROMPT, kind)
    assert differ(picture, first_sample(trained.folder)) < TOLERANCE
    assert differ(picture, as_letters) > 1e-3  # the words matter, or nothing would be tested


def test_the_card_says_how_to_load_them(hat: Trained) -> None:
    card = (hat.folder / "README.md").read_text()
    assert "<hat>, <my.dog>" in card
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert '["<hat>", "<my.dog>"]' in code
    assert "pipe.load_textual_inversion" in code


def test_they_begin_as_a_word_or_as_noise_of_its_size_and_train_in_the_first_half(
    sd1: Path, captioned: Path, tmp_path: Path, hat: Trained
) -> None:
    pipeline: Any = load_pipeline(sd1, torch.float32)
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    apple = table[pipeline.tokenizer("apple", add_special_tokens=False).input_ids].mean(0)
    still = run(settings(sd1, captioned, tmp_path / "still", token_lr=1e-12, sample_every=0))
    noise, word = load_file(still.folder / "embeddings.safetensors")["clip_l"]
    torch.testing.assert_close(word, apple)
    assert 0.5 < float(noise.std() / table.std()) < 2
    learnt = load_file(hat.folder / "embeddings.safetensors")["clip_l"]
    assert torch.cosine_similarity(learnt[1], apple, dim=0) < 0.9
    torch.testing.assert_close(learnt.norm(dim=1), torch.stack([noise, word]).norm(dim=1))
    states: list[torch.Tensor] = []
    for _ in _watched(settings(sd1, captioned, tmp_path / "seen", sample_every=0), states):
        pass
    assert not torch.equal(states[8], states[9])
    assert torch.equal(states[9], states[19])


def _watched(config: TrainConfig, states: list[torch.Tensor]) -> Any:
    """The steps of a training, with the words' vectors after each."""
    from train import loop
    from train.prepare import open_training, prepare

    base, data, made = prepare(config, None)
    accelerator, task, state = open_training(config, made, base, data)
    for event in loop.run_steps(task, config, made, accelerator, state):
        (rows,) = (p for name, p in task.module.named_parameters() if name.endswith("new_rows"))
        states.append(rows.detach().clone())
        yield event


def test_resume_and_reproduce_are_exact(sd1: Path, captioned: Path, tmp_path: Path, hat: Trained) -> None:
    from train.recipe import config_from, read_recipe

    config = dataclasses.replace(hat.config, output=tmp_path / "again")
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 7

    list(train(config, stop=stop))
    list(train(dataclasses.replace(config, resume=True)))
    again = config_from(read_recipe(hat.folder), data=captioned, output=tmp_path / "reproduced")
    assert (again.new_tokens, again.token_lr) == (hat.config.new_tokens, 0.5)
    list(train(dataclasses.replace(again, base=str(sd1))))
    for name in ("embeddings.safetensors", "pytorch_lora_weights.safetensors"):
        first = (hat.folder / name).read_bytes()
        assert (config.output / name).read_bytes() == first
        assert (again.output / name).read_bytes() == first


def test_eval_reads_the_words(captioned: Path, tmp_path: Path, hat: Trained) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in captioned.glob("*.png"):
        (pictures / file.name).write_bytes(file.read_bytes())
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for file in hat.folder.iterdir():
        if file.is_file() and file.name != "embeddings.safetensors":
            (spoilt / file.name).write_bytes(file.read_bytes())

    def changed(folder: Path) -> float:
        output = tmp_path / f"{folder.name}-eval"
        config = EvalConfig(adapter=folder, data=pictures, output=output, images=2, prompt=PROMPT, card=False)
        events = evaluate(config)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return float(end.value.rows[-1]["changed_pixels"])

    assert changed(hat.folder) != changed(spoilt)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"new_tokens": ("hat",)}, "a new token cannot be called 'hat'"),
        ({"new_tokens": ("<hat>", "<hat>=dog")}, "a new token is given twice"),
        ({"new_tokens": ("<cat>",)}, "does not say <cat>"),
        ({"new_tokens": tuple(f"<s{n}>" for n in range(65))}, "65 new tokens are too many"),
        ({"new_tokens": ()}, "there is no new token"),
        ({"token_lr": -1.0}, "--token-lr is -1"),
        ({"optimizer": "prodigy"}, "prodigy finds one rate"),
        ({"task": "segmentation", "instance_prompt": None}, "reads no words"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        settings(Path("base"), Path("data"), Path("out"), **changes)


def test_words_that_no_caption_says_and_bases_that_take_none_are_refused(
    sd1: Path, captioned: Path, tmp_path: Path
) -> None:
    config = settings(sd1, captioned, tmp_path / "out", task="text-to-image", instance_prompt=None)
    with pytest.raises(InputError, match=r"no caption in .* says <hat>"):
        list(train(config))
    sd3 = write_pipeline(tmp_path / "sd3", "sd3")
    with pytest.raises(InputError, match="diffusers loads no new tokens into a sd3 base"):
        list(train(settings(sd3, captioned, tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_their_rate_is_their_own_unless_one_is_found_for_all() -> None:
    assert plan(learning_rate=0.5).token_lr == 5e-4
    assert plan(learning_rate=0.5, optimizer="prodigy").token_lr == 0.5
    assert plan(learning_rate=0.5, token_lr=0.25).token_lr == 0.25
    assert plan(steps=7).token_steps == 4


def test_style_captions_teach_words_too(sd1: Path, tmp_path: Path) -> None:
    from tests.train import tiny

    data = tiny.captioned_folder(tmp_path / "data")
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        line["text"] += " <art>"
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = settings(sd1, data, tmp_path / "out", task="text-to-image", instance_prompt=None, steps=2,
                      new_tokens=("<art>",), sample_every=0)  # fmt: skip
    trained = run(config)
    tokens = read_layout(trained.folder).tokens
    assert tokens is not None
    assert tokens.names == ("<art>",)
