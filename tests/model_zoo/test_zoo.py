"""Every model folder of the zoo through doctor, training, checkpoint, export and resume on the reference engine."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import ZOO

from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.commands.policies import policy_folder
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.run import examine
from genevolve_ray.evolution.store.run import RunStore

Animal = Callable[[str], Path]
ConfigOf = Callable[..., RunConfig]
OWN = {"model.safetensors", "config.json", "optimizer.pt"}
"""Files of a checkpoint that are ours: weights, the dtype in the configuration, the optimizer."""


def assert_complete(model: Path, saved: Path) -> None:
    """A saved folder has every file of the model, unchanged but for those that are ours."""
    names = sorted(path.name for path in model.iterdir())
    assert set(names) <= {path.name for path in saved.iterdir()}
    _, different, errors = filecmp.cmpfiles(model, saved, [n for n in names if n not in OWN], shallow=False)
    assert (different, errors) == ([], [])
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model, saved))
    assert before == after


@pytest.mark.parametrize("name", ZOO)
def test_a_run_trains_saves_and_resumes(name: str, animal: Animal, config_of: ConfigOf, tmp_path: Path) -> None:
    model, run = animal(name), tmp_path / "run"
    config = config_of(model)
    checks = examine(config, run)
    assert [check for check in checks if check.status is Status.PROBLEM] == []
    [tokenizer] = [check for check in checks if check.name == "tokenizer"]
    assert f"turns end in {ZOO[name].end}," in tokenizer.detail
    [turn] = [check for check in checks if check.name == "turn"]
    assert ZOO[name].end in turn.detail
    evolve_run(config, run, in_process=True)
    with policy_folder(run) as exported:
        assert_complete(model, exported)
    evolve_run(config_of(model, "loop.steps=2"), run, in_process=True)
    metrics = RunStore.read(str(run)).metrics()
    assert len(metrics) == 2
    assert all(row["parity"] < config.loop.parity_limit for row in metrics)


@pytest.mark.parametrize("name", ZOO)
def test_fine_tuning_writes_a_folder_that_can_be_evolved(
    name: str, animal: Animal, config_of: ConfigOf, tmp_path: Path
) -> None:
    from published_helpers import sft_row, write_lines

    from genevolve_ray.commands.sft import sft_rows_run
    from genevolve_ray.doctor.preflight import preflight

    rows, out = write_lines(tmp_path / "rows.jsonl", [sft_row(i) for i in range(2)]), tmp_path / "out"
    sft_rows_run(rows, animal(name), out, ["heldout_fraction=0.01", "dtype=float32"], steps=1)
    assert_complete(animal(name), out)
    preflight(config_of(out), local=True)


def test_a_template_of_the_processor_alone_is_read(animal: Animal, config_of: ConfigOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(animal("qwen2.5-vl"), tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    checks = examine(config_of(folder), tmp_path / "run")
    assert [check for check in checks if check.status is Status.PROBLEM] == []


def test_an_adapter_travels_with_the_files_of_its_base(animal: Animal, config_of: ConfigOf, tmp_path: Path) -> None:
    model, run = animal("qwen2.5"), tmp_path / "run"
    evolve_run(config_of(model, "learner.lora={rank: 2, alpha: 4}"), run, in_process=True)
    kept = run / "checkpoints" / "000001"
    assert not (kept / "config.json").exists()
    with policy_folder(run) as exported:
        names: list[Any] = [path.name for path in model.iterdir() if path.name not in OWN]
        for folder in (kept, exported):
            assert filecmp.cmpfiles(model, folder, names, shallow=False)[1:] == ([], [])
        assert_complete(model, exported)


def end_every_turn(model: Any, token: int) -> None:
    """Make a token so likely that the model emits it whenever it may."""
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, torch.tensor([token]), 1e4))


@pytest.mark.parametrize("name", ZOO)
async def test_a_policy_may_end_its_turn_and_does(name: str, animal: Animal) -> None:
    from genevolve_ray.agent.policy_session import TokenSession
    from genevolve_ray.engines.protocol import SamplingParams
    from genevolve_ray.engines.transformers import TransformersEngine
    from genevolve_ray.evolution.inprocess import load_banned, load_chat

    chat = load_chat(animal(name))
    engine = TransformersEngine(animal(name), banned=load_banned(animal(name), chat))
    end_every_turn(engine._model, chat.end_of_turn_id)
    session = TokenSession(engine, chat, SamplingParams())
    session.begin([{"role": "user", "content": "Show moon"}], 2000)
    turns = []
    for place in range(2):
        turns.append(await session.sample_turn(max_tokens=8, seed=place, request_id=f"zoo/{place}"))
        assert session.hear(["Take once"], 500)
    await engine.close()
    assert [(turn.tokens, turn.cut) for turn in turns] == [(1, False)] * 2
    # The template's own conversation, token for token.
    own = [
        {"role": role, "content": text}
        for role, text in (("user", "Show moon"), *[("assistant", ""), ("user", "Take once")] * 2)
    ]
    assert "".join(chat.decode(session.ledger.tokens).split()) == "".join(chat.decode(chat.prompt_ids(own)).split())


@pytest.mark.parametrize("name", [name for name, species in ZOO.items() if species.vision is None])
async def test_a_chat_model_stops_at_the_end_of_its_turn(name: str, animal: Animal) -> None:
    """The same folders as judges: an answer ends where the template ends it, even if that is not the end of sequence."""
    from genevolve_ray.engines.chat_transformers import TransformersChat
    from genevolve_ray.engines.protocol import ChatMessage
    from genevolve_ray.evolution.inprocess import load_chat

    chat = load_chat(animal(name))
    judge = TransformersChat(TransformersChat.Config(model=str(animal(name)), threads=1))
    end_every_turn(judge._model, chat.end_of_turn_id)
    assert await judge.chat([ChatMessage("user", ("Show moon",))], max_tokens=8) == ""
    await judge.aclose()
