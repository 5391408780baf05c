from __future__ import annotations

import torch

from train.masks import IGNORED
from train.tasks.segmentation import augment, named_figures, overlap_loss, segmentation_loss


def test_the_mask_follows_its_picture() -> None:
    masks = torch.zeros(8, 32, 32, dtype=torch.uint8)
    masks[:, 10:20, 4:18] = 1
    pictures = masks[:, None].float().expand(-1, 3, -1, -1)
    moved, moved_masks = augment(pictures, masks, torch.Generator().manual_seed(0))
    assert moved_masks.dtype == torch.uint8
    assert set(moved_masks.flatten().tolist()) <= {0, 1, IGNORED}
    # Light and contrast change, the order of light and dark does not.
    for picture, mask in zip(moved[:, 0], moved_masks, strict=True):
        assert picture[mask == 1].mean() > picture[mask == 0].mean() + 0.4


def test_it_is_random_but_seeded() -> None:
    pictures, masks = torch.rand(4, 3, 16, 16), torch.zeros(4, 16, 16, dtype=torch.uint8)
    first = augment(pictures, masks, torch.Generator().manual_seed(1))[0]
    assert torch.equal(first, augment(pictures, masks, torch.Generator().manual_seed(1))[0])
    assert not torch.equal(first, augment(pictures, masks, torch.Generator().manual_seed(2))[0])


def test_overlap_is_lost_only_where_classes_differ_and_ignored_pixels_do_not_count() -> None:
    masks = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, IGNORED]]]).repeat(8, 1, 1)
    right = torch.nn.functional.one_hot(masks.clamp(max=1), 3).permute(0, 3, 1, 2).float() * 50
    assert overlap_loss(right, masks) < 1e-3
    wrong = right.roll(1, dims=1)
    assert overlap_loss(wrong, masks) > 0.5
    ignored = right.clone()
    ignored[:, :, 1, 3] = torch.tensor([50.0, 0, 0])
    assert torch.equal(overlap_loss(ignored, masks), overlap_loss(right, masks))


def test_a_part_without_counted_pixels_has_no_loss_and_moves_nothing() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 8, 8), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_figures_of_classes_with_like_names_are_kept_apart() -> None:
    figures = named_figures("iou", {0: "a b", 1: "a_b", 2: "c d"}, (0.1, 0.2, 0.3))
    assert figures == {"iou_0_a_b": 0.1, "iou_1_a_b": 0.2, "iou_2_c_d": 0.3}
    assert named_figures("iou", {0: "a b", 1: "c"}, (0.1, 0.2)) == {"iou_a_b": 0.1, "iou_c": 0.2}
