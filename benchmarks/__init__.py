"""What this machine does with the work of a training step, each figure beside the limit measured in the same run."""
