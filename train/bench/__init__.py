"""Training measured beside a plain loop."""
