"""One file per task: tensors from data, a loss, samples, and the weights file."""
