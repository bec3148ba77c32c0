"""Diagnosis before the start: the abilities of a machine, and the missing requirements of a run."""

from genevolve_ray._moved import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    dict.fromkeys(
        (
            "Check",
            "Gpu",
            "Status",
            "diagnose",
            "exit_status",
            "find_gpus",
            "parse_gpus",
            "print_diagnosis",
            "torch_cuda_version",
            "version_of",
        ),
        "machine",
    ),
)
