"""diffusers and peft load adapters by name, straight from a registry, as they would from the Hub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import AutoModelForSemanticSegmentation

from hubctl.adapter.contents import Dialect
from hubctl.base_models import embedded_bases
from hubctl.hub.client import Hub
from hubctl.hub.push import push
from tests.registry_server import RegistryServer, isolated_environment

BASES = embedded_bases()
CARD = "---\nbase_model: hubctl/{base}\nlibrary_name: {library}\ntags: [lora]\n---\n"
DIFFUSERS = """
import sys
import torch
from diffusers import DiffusionPipeline
from peft.utils import get_peft_model_state_dict
base, name, folder = sys.argv[1:]
copy = {"subfolder": "kohya", "weight_name": "style.safetensors"}
states = []
for source, how in ((folder, {}), (name, {}), (name, copy)):
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(source, **how)
    states.append(get_peft_model_state_dict(pipeline.unet, adapter_name="default_0"))
local, *others = states
assert local
for state in others:
    assert state.keys() == local.keys()
    assert all(torch.equal(state[key], local[key]) and local[key].any() for key in local)
"""
PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForSemanticSegmentation
picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
def base():
    return AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    adapted = (PeftModel.from_pretrained(base(), source).eval() for source in sys.argv[2:])
    named, local = (model(picture).logits for model in adapted)
    assert torch.equal(named, local)
    assert not torch.equal(named, base()(picture).logits)
"""


def test_diffusers(registry: RegistryServer, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(BASES["emoji-64"], subfolder="unet")
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    folder = tmp_path / "style"
    StableDiffusionPipeline.save_lora_weights(folder, get_peft_model_state_dict(unet))
    read(DIFFUSERS, "emoji-64", "diffusers", folder, registry, also=["kohya"])


def test_peft(registry: RegistryServer, tmp_path: Path) -> None:
    base = AutoModelForSemanticSegmentation.from_pretrained(BASES["emoji-64-seg"])
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path / "parts"
    get_peft_model(base, config).save_pretrained(folder)
    read(PEFT, "emoji-64-seg", "peft", folder, registry)


def read(
    script: str,
    base: str,
    library: str,
    folder: Path,
    registry: RegistryServer,
    *,
    also: Sequence[Dialect] = (),
) -> None:
    """Push the folder, and run the script with the base, the name and the folder."""
    (folder / "README.md").write_text(CARD.format(base=base, library=library))
    token = registry.token("reader")
    hub, name = Hub(registry.endpoint, token, "local"), f"reader/{folder.name}"
    pushed = push(hub, folder, name, private=True, also=also)
    done = subprocess.run(
        [sys.executable, "-c", script, BASES[base], pushed.repo_id, folder],
        env=isolated_environment(folder.parent, registry, token), cwd=folder.parent,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
