"""Adapters out of data: the doors are `train.run.train`, `train.measure.measure` and `train.lint.lint`."""
