"""Weights over device memory, between the learner's rank 0 and vLLM's workers: NCCL, CUDA IPC, and gloo for CPUs."""
