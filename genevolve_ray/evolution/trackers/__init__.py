"""Trackers: TensorBoard, Weights & Biases, MLflow and trackio show a run besides its own store.

`port` says what a tracker does, one module each adapts a library to it, `background` feeds them from the run store without
ever delaying the run, and `opening` opens those that are configured.
"""
