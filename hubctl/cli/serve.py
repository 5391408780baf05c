"""`hubctl serve` runs the server; `hubctl generate` and `hubctl segment` are clients of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from hubctl.cli.output import Output, duration, json_option
from hubctl.errors import InputError

if TYPE_CHECKING:
    from serve.deploy import Target

SERVER = "http://127.0.0.1:8000"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
TARGETS = ("laptop", "gpu", "cluster", "kuberay")

server_option = click.option("--server", default=SERVER, show_default=True, help="The server's URL.")


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Settings (TOML); flags go before them."
)
@click.option("--base", "bases", multiple=True, metavar="REF", help="A base model to serve; may be repeated.")
@click.option("--host", help="Address to listen on  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one  [default: 8000]")
@click.option("--remote", help="The hub that adapters come from  [default: the current remote]")
@click.option("--replicas", type=click.IntRange(1), help="Most replicas of each base  [default: 1]")
@click.option("--device", help="auto, cpu, cuda, cuda:1, ...  [default: auto]")
@click.option(
    "--engine", type=click.Choice(["torch", "echo"]), help="echo answers with made-up pictures, for dry runs."
)
@click.option(
    "--ray-address", help="A running Ray cluster; otherwise one is started here, and stopped again."
)
@click.option("--locked", is_flag=True, help="Serve the adapters of hub.lock, and nothing else.")
@click.option(
    "--render", type=click.Choice(TARGETS), help="Print the deployment for a target (YAML) and stop."
)
@json_option
@click.pass_obj
def serve(
    output: Output,
    config_path: Path | None,
    bases: tuple[str, ...],
    host: str | None,
    port: int | None,
    remote: str | None,
    replicas: int | None,
    device: str | None,
    engine: str | None,
    ray_address: str | None,
    locked: bool,
    render: str | None,
) -> None:
    """Serve base models, and every adapter of a hub that fits one of them, over HTTP.

    Adapters are named in the requests; nothing needs to be loaded or restarted for a new one.

    \b
    Examples:
      hubctl serve --base emoji-64 --base emoji-64-seg
      hubctl serve --base stabilityai/stable-diffusion-xl-base-1.0 --replicas 2
      hubctl serve --config serve.toml --port 8080
      hubctl serve --base emoji-64 --locked
      hubctl serve --config serve.toml --render kuberay | kubectl apply -f -
    """
    from dataclasses import replace

    from serve.config import BaseConfig, ServeConfig, load_config

    given: dict[str, Any] = {"host": host, "port": port, "remote": remote, "ray_address": ray_address}
    given = {name: value for name, value in given.items() if value is not None}
    if locked:
        from hubctl.hub.lock import LOCK, read_lock

        given["locked"] = read_lock(Path(LOCK))
    if config_path is not None:
        config = load_config(config_path)
        if bases:
            given["bases"] = (*config.bases, *(BaseConfig(ref=ref) for ref in bases))
        config = replace(config, **given)
    else:
        config = ServeConfig(bases=tuple(BaseConfig(ref=ref) for ref in bases), **given)
    tuned: dict[str, Any] = {
        name: value for name, value in (("kind", engine), ("device", device)) if value is not None
    }
    scaled: dict[str, Any] = {"max_replicas": replicas} if replicas is not None else {}
    config = replace(
        config,
        bases=tuple(replace(b, engine=replace(b.engine, **tuned), **scaled) for b in config.bases),
    )
    if render is not None:
        from serve.deploy import to_yaml

        rendered = to_yaml(config, cast("Target", render)).rstrip()
        output.result({"target": render, "yaml": rendered}, text=rendered, quiet="yaml")
        return
    from serve.preflight import prepare

    config = prepare(config)
    names = [base.name for base in config.bases]
    output.note(f"starting {', '.join(names)} ...")
    from serve.app import run  # seconds: Ray

    def ready(url: str) -> None:
        output.result({"url": url, "bases": names}, text=f"serving {', '.join(names)} at {url}", quiet="url")
        output.note(f'try: hubctl generate "red apple" --server {url} -o apple.png   (Ctrl-C stops)')

    run(config, ready=ready)


@click.command()
@click.argument("prompt")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="OWNER/NAME[@REV][:SCALE]", help="May be repeated."
)
@click.option("--model", metavar="BASE", help="The base; without it, the adapter's own or the only one.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default="out.png", show_default=True)
@click.option("--n", "count", type=click.IntRange(1), default=1, show_default=True, help="How many images.")
@click.option("--size", metavar="WxH", help="In pixels; without it, the base's own.")
@click.option("--steps", type=click.IntRange(1), help="Denoising steps; the base's own if left out.")
@click.option("--guidance", type=float, help="Guidance scale; the base's own if left out.")
@click.option("--seed", type=click.IntRange(0), help="Of the first image; chosen by the server if left out.")
@click.option("--scheduler", help="For example ddim, euler, dpm++_2m.")
@click.option("--negative", metavar="PROMPT", help="What should not be in the picture.")
@server_option
@json_option
@click.pass_obj
def generate(
    output: Output,
    prompt: str,
    adapters: tuple[str, ...],
    model: str | None,
    out: Path,
    count: int,
    size: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int | None,
    scheduler: str | None,
    negative: str | None,
    server: str,
) -> None:
    """Make an image from a prompt, on a running server. Prints the path of the file.

    \b
    Examples:
      hubctl generate "red apple" -o apple.png
      hubctl generate "red apple" --adapter alice/line-art -o apple.png
      hubctl generate "a house" --adapter alice/line-art:0.6 --adapter bob/ink@v2:0.4 --n 4
    """
    from hubctl.client import LoraChoice, Server, image_bytes, numbered

    loras = [LoraChoice.parse(text) for text in adapters]
    kind = _image_format(out)
    paths = numbered(out, count)
    client = Server(server)
    with output.progress(None, f"generating with {_names(model, adapters)}"):
        answer = client.generate(
            {
                "model": model,
                "prompt": prompt,
                "n": count,
                "size": size,
                "output_format": kind,
                "negative_prompt": negative,
                "num_inference_steps": steps,
                "guidance_scale": guidance,
                "seed": seed,
                "scheduler": scheduler,
                "loras": [{"id": lora.id, "scale": lora.scale} for lora in loras] or None,
            }
        )
    for path, item in zip(paths, answer["data"], strict=True):
        _write(path, image_bytes(item["b64_json"], client))
    _report(output, [str(path) for path in paths], answer)


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--adapter", metavar="OWNER/NAME[@REV]", help="Without one, the base itself answers.")
@click.option("--model", metavar="BASE", help="The base; without it, the only one there is.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The overlay  [default: IMAGE-overlay.png]"
)
@click.option(
    "--masks", type=click.Path(path_type=Path, file_okay=False), help="Write one PNG per class into a folder."
)
@server_option
@json_option
@click.pass_obj
def segment(
    output: Output,
    image: Path,
    adapter: str | None,
    model: str | None,
    out: Path | None,
    masks: Path | None,
    server: str,
) -> None:
    """Find the classes in an image, on a running server. Prints the path of the overlay.

    \b
    Examples:
      hubctl segment cat.png --adapter alice/pets -o overlay.png
      hubctl segment cat.png --adapter alice/pets --masks masks/
    """
    from hubctl.client import LoraChoice, Server, image_bytes

    if adapter is not None and model is not None:
        raise InputError(
            "--adapter and --model together", hint="an adapter brings its base: leave --model out"
        )
    if adapter is not None:
        LoraChoice.parse(adapter)
        if ":" in adapter:
            raise InputError(
                f"--adapter {adapter}: segmentation takes adapters at their full strength",
                hint=f"--adapter {adapter.partition(':')[0]}",
            )
    out = out or image.with_name(f"{image.stem}-overlay.png")
    if _image_format(out) != "png":
        raise InputError(f"{out} is no PNG", hint="give --out a name that ends in .png")
    client = Server(server)
    chosen = adapter or model
    with output.progress(None, f"segmenting with {chosen or 'the base'}"):
        answer = client.segment(image, {"model": chosen, "output": "overlay"})
        parts = client.segment(image, {"model": chosen, "output": "masks"})["data"] if masks else []
    if masks is not None:
        _make_folder(masks)
    _write(out, image_bytes(answer["image"], client))
    paths = [str(out)]
    if masks is not None:
        for part in parts:
            path = masks / f"{part['id']}-{re.sub(r'[^A-Za-z0-9_-]+', '_', part['label'])}.png"
            _write(path, image_bytes(part["mask"], client))
            paths.append(str(path))
    for part in answer["data"]:
        output.note(f"{part['label']}: {part['share']:.0%} of the image, score {part['score']:.2f}")
    _report(output, paths, answer, segments=answer["data"])


def _report(output: Output, paths: list[str], answer: Mapping[str, Any], **more: Any) -> None:
    """Paths on stdout; which bytes made them, and the seed, beside them."""
    about = answer["hubctl"]
    used = [f"{a['id']}@{a['revision'][:12]} x {a['scale']:g}" for a in about["adapters"]]
    seed = f", seed {about['seed']}" if "seed" in about else ""
    took = duration(about["timings"]["total_s"])
    output.note(f"{' + '.join([about['base'], *used])}{seed}, {took}")
    if output.json:
        output.result({"paths": paths, **more, "hubctl": about})
    for path in paths:
        output.text(path)


def _names(model: str | None, adapters: tuple[str, ...]) -> str:
    return " + ".join([*([model] if model else []), *adapters]) or "the base"


def _image_format(path: Path) -> str:
    """The format that the file's ending stands for; refuses a missing folder too, before any work."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path} is no PNG, JPEG or WebP", hint=f"use one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}", hint=f"mkdir -p {path.parent}")
    return kind


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from error
