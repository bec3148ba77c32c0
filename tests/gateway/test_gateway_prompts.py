"""Prompts that are too long end at the gateway: no worker could play them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gateway_helpers import house

from genevolve_ray.records.trajectory import Outcome, Termination


@pytest.mark.parametrize(("words", "reason"), [(5000, "limit 512"), (0, "the context holds 8")])
async def test_a_sample_whose_prompt_is_too_long_is_leased_to_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int, reason: str
) -> None:
    """Every worker would give it back, and it would be leased again."""
    async with house(tmp_path) as h:
        gateway, task = h.server.gateway, h.task(0)
        if not words:
            facts = replace(gateway._inspector._facts, max_model_len=8)
            monkeypatch.setattr(gateway._inspector, "_facts", facts)
        request = task.request.model_copy(update={"prompt": task.request.prompt + " moon" * words})
        found = await h.rollouts.rollout(task.model_copy(update={"request": request}))
        assert (found.outcome, found.termination) == (Outcome.INFRA_FAILURE, Termination.PROMPT_TOO_LONG)
        assert reason in found.reason and found.key == task.key
        assert gateway.lease_table.counts()["answered"] == 0
