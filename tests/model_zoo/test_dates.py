"""Templates that print today's date: one date for a run, its resumes, its gateway and its jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from zoo import ZOO

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.commands.inference import agent_of
from genevolve_ray.config import RunConfig
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.teaching import PatchError, TeacherPatch
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Termination, Trajectory

Animal = Callable[[str], Path]
ConfigOf = Callable[..., RunConfig]
DATED = [name for name, species in ZOO.items() if species.dated]
LONG_AGO = "2020-02-29T23:59:59+00:00"


def prompts(store: RunStore, step: int, chat: ChatFormat) -> set[str]:
    found = [t.ledger for group in store.groups(step) for t in group.trajectories]
    return {chat.decode(ledger.tokens[: ledger.policy_mask.index(True)]) for ledger in found}


@pytest.mark.parametrize("name", DATED)
def test_a_run_keeps_the_day_of_its_start_on_resume(
    name: str, animal: Animal, config_of: ConfigOf, tmp_path: Path
) -> None:
    run, chat = tmp_path / "run", load_chat(animal(name))
    evolve_run(config_of(animal(name)), run, in_process=True)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"created": LONG_AGO}))
    evolve_run(config_of(animal(name), "loop.steps=2"), run, in_process=True)
    [prompt] = prompts(RunStore.read(str(run)), 2, chat)
    assert "29 Feb" in prompt and "2020" in prompt


def test_a_day_can_be_chosen(animal: Animal, config_of: ConfigOf, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evolve_run(config_of(animal("llama3.2"), "date=2031-12-24"), run, in_process=True)
    store = RunStore.read(str(run))
    assert store.config["date"] == "2031-12-24"
    [prompt] = prompts(store, 1, load_chat(animal("llama3.2")))
    assert "24 Dec 2031" in prompt


def trajectory_of(chat: ChatFormat) -> Trajectory:
    ledger = TokenLedger()
    ledger.append_context(chat.prompt_ids(prompt_messages("a kin", PROFILES["zoo"], {})), SpanKind.PROMPT)
    turn = chat.text_ids("take once")
    ledger.append_policy(turn, [-1.0] * len(turn), [0] * len(turn), SpanKind.TEXT)
    return Trajectory(
        key=SampleKey(step=1, request_id="r", sample=0),
        prompt="a kin",
        ledger=ledger,
        provenance=Provenance(profile="zoo", engine="e", seed=0, split="train"),
        outcome=Outcome.POLICY_FAILURE,
        termination=Termination.NO_ANSWER,
    )


@pytest.mark.parametrize("name", list(ZOO))
def test_guidance_finds_its_place_in_a_prompt_of_another_day(name: str, animal: Animal) -> None:
    before, after = (load_chat(animal(name), date) for date in ("2024-09-09", "2024-12-31"))
    trajectory = trajectory_of(before)
    patch = TeacherPatch(after, PROFILES["zoo"], 4096)
    context = patch.context(trajectory, Experience(search_strategy=("Take search",)))
    assert context is not None
    own = [t for t, wanted in zip(context.tokens, context.policy_mask, strict=True) if wanted]
    assert own == before.text_ids("take once")
    text = before.decode(context.tokens)
    assert "Guide:\n- Take search\nTools:" in text
    assert text.replace("Guide:\n- Take search\n", "") == before.decode(trajectory.ledger.tokens)


def test_a_prompt_of_another_profile_is_still_refused(animal: Animal) -> None:
    chat = load_chat(animal("llama3.2"))
    patch = TeacherPatch(chat, PROFILES["release"], 10**6)
    with pytest.raises(PatchError):
        patch.context(trajectory_of(chat), Experience(search_strategy=("Take search",)))


def test_a_job_keeps_the_day_on_which_it_began(animal: Animal, config_of: ConfigOf, tmp_path: Path) -> None:
    from genevolve_ray.bench.jobs.settings_file import claim_folder

    config = config_of(animal("llama3.2"))
    with agent_of(None, config, tmp_path / "out", "rollout", "2024-09-09") as agent:
        claim_folder(tmp_path / "out", "rollout", agent.settings())
    with agent_of(None, config, tmp_path / "out", "rollout", None) as agent:
        assert (agent.date, agent.config.date) == ("2024-09-09", "2024-09-09")
