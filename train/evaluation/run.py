"""The one door to judging: `evaluate(config)` says how good an adapter is, in figures and in pictures.

Everything is loaded as users load it: the base's own files, and the adapter by diffusers or peft alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Generator
from pathlib import Path

from hubctl.adapter.card import CARD, Result, first_base_model, read_card_data, with_result
from hubctl.adapter.gate import gate
from hubctl.adapter.package import REPORT, Manifest, new_folder, read_manifest, refuse_inputs
from hubctl.base_models import BaseModel, FetchBase, locate_base
from hubctl.cpu import tune_cpu
from hubctl.errors import InputError
from train.dataset import CaptionedImage, is_captioned, read_captions
from train.evaluation.config import EvalConfig, Judgement, Report
from train.events import Event, Preparing, Warned
from train.masks import MaskData, read_masks
from train.subject import read_subject

References = tuple[CaptionedImage, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    judged: MaskData | References
    images: int
    sha256: str
    held_out: bool
    """They are a test part, which no training saw."""


def evaluate(config: EvalConfig, *, fetch_base: FetchBase | None = None) -> Generator[Event, None, Report]:
    """Judge an adapter; the generator's value is the report, which lies in `config.output` too.

    Raises:
        HubctlError: of the class that fits the fault: the adapter, its base, the data, the output folder.
    """
    manifest = read_manifest(config.adapter)
    if config.card:
        read_card_data(config.adapter)  # a broken one is found now, not after everything was drawn
    base = locate_base(_base_ref(config, manifest), fetch=fetch_base)
    embedder = Path(config.embedder) if config.embedder and Path(config.embedder).is_dir() else None
    refuse_inputs(config.output, (config.adapter, config.data, base.path, embedder))
    gate(config.adapter, base)
    data = _read_data(config, base.family.task == "image-segmentation", manifest)
    if manifest and not data.held_out and data.sha256 == manifest.data.get("sha256"):
        yield Warned(message="it was trained on these very images: the figures say how well it knows them")
    yield Preparing(stage="loading torch")
    tune_cpu()
    from train.devices import quiet_libraries

    quiet_libraries()
    yield Preparing(stage=f"loading {base.id} and the adapter")
    with new_folder(config.output, overwrite=config.overwrite) as folder:
        judgement = yield from _judge(config, base, manifest, data, folder, fetch_base)
        report = Report(
            adapter=str(config.adapter),
            base=base.id,
            data=str(config.data),
            data_sha256=data.sha256,
            split="test" if data.held_out else "all",
            images=data.images,
            metrics=judgement.metrics,
            rows=judgement.rows,
            pictures=sorted(path.name for path in folder.glob("*.png")),
        )
        text = json.dumps(dataclasses.asdict(report), indent=2, sort_keys=True) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")
    if config.card:
        _into_card(config, base, report)
    return report


def is_judged(config: EvalConfig) -> bool:
    """Whether there is a report already, on the data as they are now.

    Raises:
        InputError: the adapter is not one that hubctl trained, or the data cannot be used.
    """
    manifest, report = read_manifest(config.adapter), config.output / REPORT
    if manifest is None:
        raise InputError(f"{config.adapter} has no manifest", hint="train it again: --overwrite")
    if not report.is_file():
        return False
    found = json.loads(report.read_text(encoding="utf-8"))
    same: bool = found["data_sha256"] == _read_data(config, manifest.task == "segmentation", manifest).sha256
    return same


def _judge(
    config: EvalConfig,
    base: BaseModel,
    manifest: Manifest | None,
    data: _Data,
    folder: Path,
    fetch_base: FetchBase | None,
) -> Generator[Event, None, Judgement]:
    if isinstance(data.judged, MaskData):
        from train.evaluation.masks import judge_masks

        known = manifest.data.get("labels") if manifest else None
        names = {int(number): str(name) for number, name in (known or data.judged.labels).items()}
        return (yield from judge_masks(config, base, data.judged, names, folder))
    from train.evaluation.pictures import judge_pictures

    return (yield from judge_pictures(config, base, data.judged, folder, fetch_base))


def _base_ref(config: EvalConfig, manifest: Manifest | None) -> str:
    if config.base:
        return config.base
    if manifest:
        commit = manifest.base.commit
        return f"{manifest.base.id}@{commit}" if commit else manifest.base.id
    named = first_base_model(read_card_data(config.adapter))
    if not named:
        raise InputError(f"{config.adapter} does not say what base it is for", hint="add --base NAME")
    return named


def _read_data(config: EvalConfig, masks: bool, manifest: Manifest | None) -> _Data:
    return _masks(config) if masks else _references(config, manifest)


def _masks(config: EvalConfig) -> _Data:
    data = read_masks(config.data)
    return _Data(
        judged=data, images=len(data.test or data.train), sha256=data.sha256, held_out=bool(data.test)
    )


def _references(config: EvalConfig, manifest: Manifest | None) -> _Data:
    """Pictures with their prompts, evenly taken from all that there are."""
    if is_captioned(config.data):
        captioned = read_captions(config.data)
        items, sha256, held_out = captioned.test or captioned.train, captioned.sha256, bool(captioned.test)
    else:
        prompt = config.prompt or (manifest.settings.get("instance_prompt") if manifest else None)
        if not prompt:
            raise InputError(
                f"{config.data} has no captions, so nobody knows what to draw",
                hint='say what the pictures show: --prompt "a photo of tok dog"',
            )
        subject = read_subject(config.data)
        items = tuple(CaptionedImage(path=path, caption=prompt) for path in subject.train)
        sha256, held_out = subject.sha256, False
    chosen = items[:: max(1, len(items) // config.images)][: config.images]
    return _Data(judged=chosen, images=len(chosen), sha256=sha256, held_out=held_out)


def _into_card(config: EvalConfig, base: BaseModel, report: Report) -> None:
    """Add the figures and pictures to the adapter's card, in place of earlier ones on the same data."""
    card, name = config.adapter / CARD, config.adapter.resolve().name
    folder = config.adapter / "eval"
    folder.mkdir(exist_ok=True)
    for picture in report.pictures if not config.output.samefile(folder) else ():
        shutil.copyfile(config.output / picture, folder / picture)
    result = Result(
        task=base.family.task,
        dataset=config.data.resolve().name + (" (test)" if report.split == "test" else ""),
        metrics=report.metrics,
        pictures=[f"eval/{picture}" for picture in report.pictures],
    )
    before = card.read_text(encoding="utf-8") if card.is_file() else f"# {name}\n"
    card.write_text(with_result(before, result, name=name), encoding="utf-8")
