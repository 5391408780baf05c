"""LoRA into a frozen base: which layers, at what rank; the adapter itself is always float32."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import nn

from hubctl.errors import InputError
from train.config import TrainConfig
from train.plan import Plan

ATTENTION = "attention"
ATTENTION_CONV = "attention-conv"
ALL_LINEAR = "all-linear"
PRESETS = (ATTENTION, ATTENTION_CONV, ALL_LINEAR)

CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention of a CLIP text encoder."""

NEW_ROWS = "new_rows"
"""How the names of parameters end that are vectors of new tokens."""

HEADS = ("decode_head", "segmentation_head", "head", "classifier")
"""Names that segmentation models of transformers give their head."""
CLASSIFIER = "classifier"
"""Name of a head's last layer, in all but DPT's."""


class Head(NamedTuple):
    """How the head of a segmentation model is trained.

    Whole it would be most of the adapter, with 3.2 million parameters in SegFormer-B2 and 68 million in
    UPerNet; frozen but for its classifier it learns too little (`tests/bench/claims.md`).
    """

    classifier: str
    """Its last layer, which is new where the classes are: trained whole."""
    before: list[str]
    """The layers before it, which take LoRA. BatchNorm between them stays the base's (`training_mode`)."""


def resolve_targets(
    module: nn.Module,
    targets: Sequence[str],
    *,
    default_targets: Sequence[str],
    heads: Collection[str] = (),
) -> list[str]:
    """The `target_modules` for peft: endings of layer names, or whole names where endings say too much.

    Layers inside `heads`, or that are one, are trained whole and never take LoRA.

    Raises:
        InputError: a name fits no Linear or Conv2d layer; near names are given.
    """
    layers = _layers(module)
    free = {name for name in layers if not any(_is_in(name, head) for head in heads)}
    if tuple(targets) == (ALL_LINEAR,):
        return sorted(name for name in free if isinstance(layers[name], nn.Linear))
    if tuple(targets) == (ATTENTION_CONV,):
        convolutions = {n for n in free if isinstance(layers[n], nn.Conv2d) and _is_served(layers[n])}
        return sorted(convolutions | {n for n in free if any(_ends_with(n, t) for t in default_targets)})
    wanted = list(targets)
    if wanted == [ATTENTION]:
        # Some kinds of base come with several backbones, each with its own names.
        has = [target for target in default_targets if any(_ends_with(name, target) for name in free)]
        wanted = has or list(default_targets)
    for target in wanted:
        if not any(_ends_with(name, target) for name in free):
            raise InputError(f"no layer of the base is called {target!r}", hint=_near_names(target, free))
    # peft goes by endings, and would try what is trained whole, or a block around layers, as well.
    others = {name for name, _ in module.named_modules()} - free
    if any(_ends_with(name, target) for name in others for target in wanted):
        return sorted(n for n in free if any(_ends_with(n, target) for target in wanted))
    return wanted


def require_useful_rank(module: nn.Module, targets: Sequence[str], rank: int) -> None:
    """Raise `InputError` when the rank is above that of every weight it is to change, or one is not served.

    An update of a weight [out, in] has rank min(out, in) at most: beyond it, parameters say nothing new.
    """
    sizes = {
        # By features, as the weights of 4 bits lie packed.
        name: min(layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else min(layer.weight.shape[0], layer.weight[0].numel())
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(_ends_with(name, target) for target in targets)
    }
    for name in sizes:
        layer: Any = module.get_submodule(name)
        if not _is_served(layer):
            raise InputError(
                f"{name} is a convolution in {layer.groups} groups, dilated by {max(layer.dilation)}: hubctl "
                "could not serve LoRA in it",
                hint="leave it out of --targets",
            )
    name, most = max(sizes.items(), key=lambda item: item[1])
    if rank > most:
        raise InputError(
            f"rank {rank} is above the size of every layer that it would change: the largest, {name}, has "
            f"{most}",
            hint=f"give --rank {most} or less; 4 to 32 serve most trainings",
        )


def lora_config(
    config: TrainConfig, plan: Plan, *, targets: list[str], heads: Sequence[str] = ()
) -> LoraConfig:
    """Settings of one adapter for peft; also seeds torch, from which peft draws the first weights."""
    torch.manual_seed(config.seed)
    alpha = plan.alpha
    return LoraConfig(
        r=plan.rank,
        # peft types it as int, but computes alpha / rank in floats.
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        target_modules=targets,
        modules_to_save=list(heads) or None,
        init_lora_weights="gaussian",
        bias="none",
        use_dora=config.dora,
        use_rslora=config.rslora,
    )


def trained_in_float32(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, made float32: half precision loses the small updates."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
    return parameters


def parameter_groups(module: nn.Module, plan: Plan, lora_plus: float) -> list[dict[str, Any]]:
    """What trains, for the optimizer, by its part of the plan's rate: `rate` of each group.

    Text encoders have a rate of their own, and B matrices `lora_plus` times that of their layer. New tokens
    have one too, and no more of it from `until_step` on.
    """
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(NEW_ROWS):
            groups.setdefault((plan.token_lr / plan.learning_rate, plan.token_steps), []).append(parameter)
            continue
        rate = plan.text_encoder_lr / plan.learning_rate if name.startswith("encoders.") else 1.0
        rate *= lora_plus if ".lora_B." in name else 1.0
        groups.setdefault((rate, plan.steps), []).append(parameter)
    return [
        {"params": parameters, "rate": rate, "until_step": until}
        for (rate, until), parameters in groups.items()
    ]


def training_mode(module: nn.Module) -> None:
    """Set the module to train, but leave frozen BatchNorm as the base has it, in a segmentation head too.

    Its means and variances would follow the new images though nothing else of the layer moves, and they are
    not in the adapter: what is loaded later would answer otherwise than what was trained.
    """
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(any(parameter.requires_grad for parameter in layer.parameters()))


def find_head(module: nn.Module) -> Head:
    """The head of a segmentation model, by its layers' names.

    Raises:
        InputError: the model has none that we know.
    """
    children = dict(module.named_children())
    name = next((name for name in HEADS if name in children), None)
    if name is None:
        raise InputError(
            f"{type(module).__name__} has no head to train ({', '.join(HEADS)})",
            hint="choose a SegFormer base, e.g. --base emoji-64-seg",
        )
    layers = {path: layer for path, layer in _layers(module).items() if _is_in(path, name)}
    # By its name where it has one, since UPerNet's stands first.
    named = hasattr(children[name], CLASSIFIER)
    classifier = f"{name}.{CLASSIFIER}" if named else list(layers)[-1]
    before = [path for path, layer in layers.items() if not _is_in(path, classifier) and _is_served(layer)]
    return Head(classifier, before)


def _layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


def _is_in(path: str, part: str) -> bool:
    """Whether the layer at `path` is that part of the model, or lies in it."""
    return f"{path}.".startswith(f"{part}.")


def _is_served(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether the server can add LoRA to it: peft's own A convolution knows neither groups nor dilation."""
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and layer.dilation == (1, 1))


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _near_names(target: str, names: Collection[str]) -> str:
    # "to_out.0" is one name to people: a number belongs to the word before it.
    endings = set()
    for name in names:
        parts = name.split(".")
        endings.add(".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1])
    near = difflib.get_close_matches(target, sorted(endings), n=5, cutoff=0.3) or sorted(endings)[:8]
    return f"give a preset ({', '.join(PRESETS)}) or layer names, e.g. --targets {','.join(near)}"
