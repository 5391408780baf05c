"""Images as a VAE encodes them, and noise.

Shapes: B images, C latent channels, H x W latent pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


class Latents:
    """Encoded images: the VAE's mean and deviation of each, [C, H, W], from which each step draws anew."""

    def __init__(self, mean: Sequence[torch.Tensor], deviation: Sequence[torch.Tensor] | None) -> None:
        self._mean, self._deviation = mean, deviation

    def __len__(self) -> int:
        return len(self._mean)

    @property
    def shapes(self) -> list[torch.Size]:
        """Of each image's latents."""
        return [mean.shape for mean in self._mean]

    def draw(self, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Latents of the images `indices`, which have one shape, [B, C, H, W]."""
        mean = torch.stack([self._mean[index] for index in indices])
        if self._deviation is None:
            return mean
        deviation = torch.stack([self._deviation[index] for index in indices])
        return mean + deviation * noise_like(mean, generator)

    def alike(self, count: int, most: int) -> Iterator[list[int]]:
        """The first `count` images in batches of one shape, of `most` at most."""
        by_shape: dict[torch.Size, list[int]] = {}
        for index, shape in enumerate(self.shapes[:count]):
            by_shape.setdefault(shape, []).append(index)
        for indices in by_shape.values():
            yield from (indices[start : start + most] for start in range(0, len(indices), most))


def noise_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise from a CPU generator, so that a seed means the same on every device."""
    return torch.randn(tensor.shape, generator=generator).to(tensor)
