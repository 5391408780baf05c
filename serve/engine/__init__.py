"""The engine: one base model on a device, and any mix of adapters and requests over it."""
