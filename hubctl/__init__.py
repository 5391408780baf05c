"""hubctl: train small LoRA adapters, keep them on a model hub, serve them by name over one base."""

__version__ = "0.1.0"
