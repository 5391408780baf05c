"""The difference of two adapters: numbers against the matrices written out, and the papers beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hubctl.adapter.contents import Dialect
from hubctl.adapter.diff import diff
from tests.adapters import write_adapter
from tests.hubctl.adapter.random_lora import ATTENTION, dense, layer, write

DIALECTS: tuple[Dialect, ...] = ("diffusers", "peft", "kohya")


def test_layers_come_in_the_order_of_their_change(tmp_path: Path) -> None:
    kept, small, large = (layer(f"{ATTENTION}.to_{x}", seed=i) for i, x in enumerate("qkv"))
    moved = layer(small.module, seed=1, alpha=4.1)
    other = layer(large.module, seed=9, rank=2, alpha=1)
    gone, new = layer("mid_block.attentions.0.proj_in", seed=5), layer("conv_in", inside=(4, 3, 3))
    found = diff(
        write(tmp_path / "a", kept, small, large, gone), write(tmp_path / "b", kept, moved, other, new)
    )

    changes = {change.layer: change for change in found.layers}
    assert [c.change for c in found.layers] == sorted((c.change for c in found.layers), reverse=True)
    assert changes[kept.where].change == 0
    assert changes[kept.where].cosine == pytest.approx(1)
    assert changes[moved.where].change == pytest.approx(np.linalg.norm(dense(moved) - dense(small)), rel=1e-6)
    assert changes[moved.where].alpha == (4, 4.1)
    w, v = dense(large), dense(other)
    assert changes[large.where].rank == (4, 2)
    assert changes[large.where].cosine == pytest.approx(
        (w * v).sum() / np.linalg.norm(w) / np.linalg.norm(v), rel=1e-6
    )
    assert (found.added, found.removed) == ((new.where,), (gone.where,))
    assert changes[gone.where].norm == (changes[gone.where].change, None)
    assert changes[gone.where].change == pytest.approx(np.linalg.norm(dense(gone)))
    assert changes[gone.where].cosine is None
    assert found.norm[0] == pytest.approx(
        np.linalg.norm([np.linalg.norm(dense(x)) for x in (kept, small, large, gone)])
    )
    assert found.change == pytest.approx(np.linalg.norm([c.change for c in found.layers]))


def test_the_same_adapter_in_another_dialect_differs_in_nothing_but_files(tmp_path: Path) -> None:
    layers = [layer(f"{ATTENTION}.to_q", alpha=3), layer("conv_in", inside=(4, 3, 3), dtype="BF16")]
    layers += [layer("encoder.layers.0.self_attn.q_proj", component="text_encoder", rslora=True)]
    folders = [
        write(tmp_path / dialect, *layers, dialect=dialect) for dialect in ("diffusers", "peft", "kohya")
    ]
    for other in folders[1:]:
        found = diff(folders[0], other)
        assert found.change == pytest.approx(0, abs=1e-6 * found.norm[0])
        assert found.cosine == pytest.approx(1)
        assert (found.added, found.removed) == ((), ())
    assert found.files == {"kohya.safetensors": "added", "pytorch_lora_weights.safetensors": "removed"}


def test_cards_and_manifests_are_compared(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a", "alice/base", rank=2)
    two = write_adapter(tmp_path / "b", "alice/other", rank=4, seed=2)
    found = diff(one, two)
    assert found.card == {"base_model": ("alice/base", "alice/other")}
    assert found.settings == {"base.id": ("alice/base", "alice/other")}
    assert set(found.files) == {"README.md", "hubctl.json", "pytorch_lora_weights.safetensors"}
    assert all(change.rank == (2, 4) for change in found.layers)
