"""The `hubctl` command: one module per command group, light to import."""
