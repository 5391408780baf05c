"""Adapters out of data: `train.run.train` is the one door."""
