"""Runs in one process: another renderer in the middle, and settings with secrets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.commands import evolve
from genevolve_ray.commands.evolve import evolve_async, evolve_run, tracked
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.config import HeldoutConfig
from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.swaps import Swaps, SwapState
from genevolve_ray.evolution.trackers.port import TrackedRun

NEW = RendererSpec(type="genevolve_ray.atlas.renderer:AtlasRenderer", config={"slip": 0.5})


def config_of(steps: int, *further: str) -> RunConfig:
    return load_config(
        "atlas",
        [
            *further,
            "rehearsal={turn_seconds: 0.1, tool_calls: 1}",
            f"loop={{steps: {steps}, requests_per_step: 1, group_size: 2, validate_every: 0, parity_limit: 1.0}}",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "heldout.requests=0",
        ],
    )


def renderers(store: RunStore, step: int) -> set[str]:
    return {t.provenance.renderer for group in store.groups(step) for t in group.trajectories}


def test_groups_change_the_renderer_and_a_resumed_run_keeps_the_new_one(tmp_path: Path) -> None:
    swaps, run = Swaps(Folder(str(tmp_path / "run"))), tmp_path / "run"
    swaps.ask(NEW)
    evolve_run(config_of(10), run, in_process=True)
    new, [swap] = NEW.build().identity, swaps.all()
    assert (swap.state, swap.identity) == (SwapState.DONE, new)
    store = RunStore.read(str(run))
    assert renderers(store, 1) <= {AtlasRenderer().identity, new}
    assert renderers(store, 10) == {new}
    evolve_run(config_of(11), run, in_process=True)
    assert renderers(RunStore.read(str(run)), 11) == {new}


SUMMARISER = (
    "summariser={type: 'genevolve_ray.judges.endpoint_summariser:EndpointSummariser', config: {url: 'http://h/v1', model: m, "
    "extra_body: {api_key: KEY, headers: {Authorization: 'Bearer never-to-be-shown'}}}}"
)


def test_no_file_of_a_run_holds_a_secret_and_it_resumes_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    evolve_run(config_of(1, SUMMARISER.replace("KEY", "in-plain-text")), run, in_process=True)
    printed = capsys.readouterr().out
    assert "summariser.config.extra_body.api_key is a secret in plain" in " ".join(printed.split())
    assert "write ${NAME}" in " ".join(printed.split())
    monkeypatch.setenv("MY_KEY", "of-the-environment")
    evolve_run(config_of(2, SUMMARISER.replace("KEY", "'${MY_KEY}'")), run, in_process=True)
    assert RunStore.read(str(run)).last_step == 2
    for path in (path for path in run.rglob("*") if path.is_file()):
        for secret in (b"in-plain-text", b"never-to-be-shown", b"of-the-environment"):
            assert secret not in path.read_bytes(), path
    assert "api_key: ${MY_KEY}" in (run / "config.yaml").read_text()
    assert "api_key: ***" not in printed and "in-plain-text" not in printed


def test_a_run_of_an_earlier_version_resumes_and_loses_its_secret(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = config_of(1, SUMMARISER.replace("KEY", "in-plain-text"))
    evolve_run(config, run, in_process=True)
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("api_key: '***'", "api_key: in-plain-text"))
    assert "in-plain-text" in path.read_text()
    evolve_run(config, run, in_process=True)
    assert "in-plain-text" not in path.read_text()


def test_a_variable_that_is_not_set_is_named_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"not set: NO_SUCH \(summariser\.config\.extra_body\.api_key\)"):
        evolve_run(config_of(1, SUMMARISER.replace("KEY", "'${NO_SUCH}'")), tmp_path / "run", in_process=True)
    assert not (tmp_path / "run").exists()


def test_a_value_that_was_masked_is_not_taken_for_the_secret(tmp_path: Path) -> None:
    config = config_of(1, SUMMARISER.replace("KEY", "'***'"))
    with pytest.raises(UserFault, match=r"summariser\.config\.extra_body\.api_key: the files of a run hold \*\*\*"):
        evolve_run(config, tmp_path / "run", in_process=True)


def test_two_folders_of_one_name_have_different_ids_and_a_resumed_run_keeps_its_own(tmp_path: Path) -> None:
    def track(folder: str, name: str = "same") -> TrackedRun:
        with RunStore.open(str(tmp_path / folder), config_of(1, f"name={name}")) as store:
            return tracked(config_of(1, f"name={name}"), store, tmp_path)

    first, second = track("one"), track("two")
    assert first.name == second.name == "same"
    assert first.id != second.id
    assert track("one") == first
    assert RunStore.read(str(tmp_path / "one")).info.run_id in first.id


def test_a_run_of_an_earlier_version_keeps_its_name_as_id(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path), config_of(1, "name=old")) as store:
        pass
    info = json.loads((tmp_path / "run.json").read_text())
    del info["run_id"]
    (tmp_path / "run.json").write_text(json.dumps(info))
    with RunStore.open(str(tmp_path), config_of(1, "name=old")) as store:
        assert tracked(config_of(1, "name=old"), store, tmp_path).id == "old"


def test_trackers_get_the_configuration_without_secrets(tmp_path: Path) -> None:
    config = config_of(1, SUMMARISER.replace("KEY", "plain-secret-1"))
    with RunStore.open(str(tmp_path / "run"), config) as store:
        sent = tracked(config, store, tmp_path).config
    assert sent["summariser"]["config"]["extra_body"]["api_key"] == "***"
    assert "plain-secret-1" not in json.dumps(sent)


def test_a_run_resumes_that_began_before_limits_were_derived(tmp_path: Path) -> None:
    config = load_config("atlas")
    stored = config.model_dump(mode="json")
    del stored["layers"]
    stored["loop"]["parity_limit"], stored["learner"]["token_budget"] = 2e-4, 4096
    for role in ("tools", "renderer", "judge"):
        stored["cluster"][role]["timeout"] = 300.0
    with RunStore.open(str(tmp_path), stored, run_seed=config.seed):
        pass
    with RunStore.open(str(tmp_path), config, run_seed=config.seed) as store:
        assert store.config == yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))


def test_a_run_ends_with_the_gain_and_the_path_of_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evolve_run(config_of(1, "heldout.requests=0"), tmp_path / "bare", in_process=True)
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'bare' / 'report.html'}"
    config = config_of(1).model_copy(update={"heldout": HeldoutConfig(requests=2)})
    evolve_run(config, tmp_path / "compared", in_process=True)
    gain, report = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r"held-out reward \S+ -> \S+ \(gain \S+, interval \S+ to \S+\) in 1 steps, \d+ s", gain)
    assert report == f"report: {tmp_path / 'compared' / 'report.html'}"


def test_a_busy_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserFault, match=rf"^gateway.port={port}: cannot listen on 127.0.0.1:{port}: Address already"
        ):
            evolve_run(config_of(1, f"gateway.port={port}", "gateway.only=true"), tmp_path / "run", in_process=True)
        assert not (tmp_path / "run").exists()


async def test_a_run_can_be_awaited_in_a_running_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops, heldout = [], evolve._heldout

    async def watched(*arguments: Any, **named: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await heldout(*arguments, **named)

    monkeypatch.setattr(evolve, "_heldout", watched)
    summary = await evolve_async(config_of(2), tmp_path / "run", in_process=True)
    assert summary["steps"] == 2 and RunStore.read(str(tmp_path / "run")).committed_steps() == [1, 2]
    assert set(loops) == {asyncio.get_running_loop()}


async def test_a_run_can_be_called_in_a_running_event_loop(tmp_path: Path) -> None:
    assert evolve_run(config_of(1), tmp_path / "run", in_process=True)["steps"] == 1
    with pytest.raises(UserFault, match="seed"):
        evolve_run(config_of(1).model_copy(update={"seed": 99}), tmp_path / "run", in_process=True)


def test_an_interrupt_ends_a_run_that_was_called_in_a_running_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    async def interrupted(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            ended.append(threading.current_thread() is not threading.main_thread())

    async def cell() -> None:
        evolve_run(config_of(1), tmp_path / "run", in_process=True)

    loop = asyncio.new_event_loop()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evolve, "_heldout", interrupted)
        loop.run_until_complete(cell())
    loop.close()
    assert ended == [True]
    assert evolve_run(config_of(1), tmp_path / "run", in_process=True)["steps"] == 1  # Its lock was released.


def test_a_run_on_ray_inside_an_event_loop_is_refused_before_anything_starts(tmp_path: Path) -> None:
    async def notebook() -> None:
        evolve_run(config_of(1), tmp_path / "run", in_process=False)

    with pytest.raises(UserFault, match=r"`await evolve_async\(.*\)`, or set in_process=True"):
        asyncio.run(notebook())
    assert list(tmp_path.iterdir()) == []
