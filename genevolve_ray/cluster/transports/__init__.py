"""Transports of weights to engines in other processes: as files of a node, or as tensors in the learner's memory."""
