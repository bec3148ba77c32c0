"""Workers play what the loop asks for, over a real server on loopback."""

from __future__ import annotations

from pathlib import Path

from gateway_helpers import house, played

from genevolve_ray.records.trajectory import Outcome


async def test_workers_answer_every_sample_and_the_gateway_judges_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        found = await played(h, [h.worker("anna"), h.worker("ben")], [h.task(i) for i in range(12)])
        assert [t.key.sample for t in found] == list(range(12))
        assert {t.outcome for t in found} == {Outcome.SCORED}
        assert {t.provenance.engine for t in found} <= {"gateway:anna", "gateway:ben"}
        assert all(t.reward is not None and t.verdict is not None for t in found)
        assert h.server.gateway.desk.counts()["answered"] == 12
