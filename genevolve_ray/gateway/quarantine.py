"""Quarantined workers, and the reasons: one file of evidence for each, which outlives the gateway."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from genevolve_ray.gateway.reasons import GatewayRefusal

_EVIDENCE_CHARS = 4 << 20


class Quarantine:
    """Hold the quarantined workers. A worker is admitted again when its file is removed and the gateway restarts."""

    def __init__(self, folder: Path) -> None:
        """Read the workers that were quarantined before."""
        self._folder = folder
        self._names = {p.name.rpartition("--")[0] for p in folder.glob("*--*.json")} if folder.is_dir() else set()

    def __contains__(self, worker: str) -> bool:
        """Return whether a worker is in quarantine."""
        return worker in self._names

    def names(self) -> list[str]:
        """Return the quarantined workers."""
        return sorted(self._names)

    def add(self, worker: str, refusal: GatewayRefusal, evidence: Mapping[str, object]) -> Path:
        """Put a worker into quarantine and write the evidence; return its file."""
        self._names.add(worker)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = {
            "worker": worker,
            "reason": refusal.reason.value,
            "detail": refusal.detail,
            "time": time.time(),
            **refusal.evidence,
            **evidence,
        }
        text = json.dumps(record, default=str)
        if len(text) > _EVIDENCE_CHARS:
            text = json.dumps(
                {k: v for k, v in record.items() if len(json.dumps(v, default=str)) < 10_000}, default=str
            )
        safe = re.sub(r"[^\w.-]", "_", worker)
        path = self._folder / f"{safe}--{time.time_ns()}.json"
        temporary = path.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        return path
