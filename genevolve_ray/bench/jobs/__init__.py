"""Jobs: rows processed concurrently through stages, resumable, under a budget."""

from genevolve_ray._moved import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    dict.fromkeys(("JobState", "JobWatch", "RowEnd", "Stop", "StopReason", "run_job"), "job"),
)
