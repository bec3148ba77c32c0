"""`genevolve export`: folders that load, a card that tells what was measured, and an upload to a hub on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_hub import COMMIT, Hub, fake_hub
from transformers import AutoModelForCausalLM, AutoTokenizer

from genevolve_ray.commands.policies import named_policy
from genevolve_ray.config import load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.learning.config import LoraConfig
from genevolve_ray.learning.lora import attach_adapter, write_adapter
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.models.companions import copy_companions

Command = Callable[..., Any]
CONFIG = load_config("atlas", ["engine.kind=transformers", "name=trial"])
START = model_folder(CONFIG.policy.model)


def run_of(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return a run of three steps with checkpoints after the first and the last."""
    with RunStore.open(str(folder), CONFIG) as store:
        for step, reward in ((1, 0.7), (2, 0.2), (3, 0.6)):
            store.commit_step(step, [], {"reward_mean": reward, "valid_fraction": 1.0}, f"hash-{step}")
            if step != 2:
                with store.checkpoint(step, f"hash-{step}", {"reward_mean": reward}) as checkpoint:
                    write(checkpoint)
                    (checkpoint / "optimizer.pt").write_bytes(b"state")
                    (checkpoint / "optimizer-00001-of-00002.pt").write_bytes(b"state")
        store.put_rows({"parts": {"train": {"a": "1", "b": "2"}, "validation": {}}}, b"")
        store.put_summary(
            {
                "steps": 3,
                "score_formula": "paper",
                "heldout_pairs": 200,
                "heldout_reward_sft": 0.4,
                "heldout_reward_final": 0.6375,
                "heldout_gain": 0.2375,
                "heldout_gain_interval": [0.21, 0.28],
            }
        )
    return folder


def whole(checkpoint: Path) -> None:
    shutil.copytree(START, checkpoint, dirs_exist_ok=True)
    (checkpoint / "README.md").write_text("the base's own card\n")


def adapted(checkpoint: Path) -> None:
    model = load_policy(START)
    description = attach_adapter(model, LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    write_adapter(model.state_dict(), description, checkpoint, "float32")
    copy_companions(START, checkpoint, config=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("whole") / "run", whole)


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("lora") / "run", adapted)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub() as found:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", found.token)
        yield found


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_an_export_loads_and_its_card_holds_provenance_and_figures(
    run: Path, tmp_path: Path, genevolve: Command
) -> None:
    out = tmp_path / "out"
    ended = genevolve("export", run, "--out", out, "--licence", "apache-2.0")
    assert (ended.code, ended.err) == (0, "")
    assert "step 3 of" in ended.out
    assert not list(out.glob("optimizer*"))
    assert (out / "README.base.md").read_text() == "the base's own card\n"
    AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    same = AutoModelForCausalLM.from_pretrained(START)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    with named_policy(str(out), CONFIG) as policy:
        assert policy is not None and policy.model == out.resolve()
    head, text = card_of(out)
    assert head["license"] == "apache-2.0" and "genevolve" in head["tags"]
    for part in ("| before | 0.4000 |", "| after | 0.6375 |", "+0.2375 (+0.2100 to +0.2800)", "200 held-out requests"):
        assert part in text
    for part in ("`hash-3`", "| train rows | 2, SHA-256", "| base model | cold_start |", "| 2 | 0.200 |"):
        assert part in text
    assert str(run) not in text


def test_a_card_states_no_licence_and_no_gain_that_is_not_its_own(
    run: Path, tmp_path: Path, genevolve: Command
) -> None:
    ended = genevolve("export", run, "--out", tmp_path / "out", "--best")
    assert "step 1 of" in ended.out and "names no license" in ended.out
    head, text = card_of(tmp_path / "out")
    assert "license" not in head
    assert "compared step 3 with its start, not this step" in text and "0.6375" not in text
    assert "Validation reward of this step: 0.7000." in text


def test_an_earlier_export_is_replaced_and_anything_else_is_left_alone(
    run: Path, tmp_path: Path, genevolve: Command
) -> None:
    out = tmp_path / "out"
    assert genevolve("export", run, "--out", out, "--step", "1").code == 0
    assert genevolve("export", run, "--out", out).code == 0
    assert json.loads((out / "genevolve_export.json").read_text())["step"] == 3
    (out / "README.md").write_text("edited by hand")
    ended = genevolve("export", run, "--out", out)
    assert ended.code == 2 and "changed since its export (README.md)" in ended.err
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    for folder in (other, run):
        ended = genevolve("export", run, "--out", folder)
        assert ended.code == 2 and "was not written by an export" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_the_working_directory_and_a_link_can_be_the_target(
    run: Path, tmp_path: Path, genevolve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, link = tmp_path / "here", tmp_path / "link"
    here.mkdir()
    link.symlink_to(here)
    monkeypatch.chdir(here)
    for out in (".", ".", link):
        assert genevolve("export", run, "--out", out).code == 0
    assert link.is_symlink() and Path("genevolve_export.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("here", "link")] == []


def test_a_lora_run_gives_an_adapter_or_merged_weights_of_the_same_policy(
    lora_run: Path, tmp_path: Path, genevolve: Command
) -> None:
    assert genevolve("export", lora_run, "--out", tmp_path / "adapter").code == 0
    assert genevolve("export", lora_run, "--out", tmp_path / "merged", "--merge-lora").code == 0
    described = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(START.resolve())
    assert card_of(tmp_path / "adapter")[0]["library_name"] == "peft"
    assert card_of(tmp_path / "merged")[0]["library_name"] == "transformers"
    assert not (tmp_path / "merged/adapter_config.json").exists()
    tokens = torch.arange(8)[None]
    with named_policy(str(tmp_path / "adapter"), CONFIG) as policy:
        assert policy is not None and policy.model is not None
        through_adapter = load_policy(policy.model)(input_ids=tokens).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=tokens).logits
    torch.testing.assert_close(merged, through_adapter)
    assert (merged - load_policy(START)(input_ids=tokens).logits).abs().max() > 0.01


def test_an_adapter_may_name_its_base_on_a_hub(
    lora_run: Path, tmp_path: Path, genevolve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert genevolve("export", lora_run, "--out", tmp_path / "out", "--base", "org/base").code == 0
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert card_of(tmp_path / "out")[0]["base_model"] == "org/base"
    with (
        pytest.raises(UserFault, match="base_model_name_or_path: 'org/base' .*HF_HUB_OFFLINE"),
        named_policy(str(tmp_path / "out"), CONFIG),
    ):
        pass
    monkeypatch.setattr("genevolve_ray.commands.policies.local_model", lambda text, key: START)
    with named_policy(str(tmp_path / "out"), CONFIG) as policy:
        assert policy is not None


def test_a_run_from_a_hub_model_names_it(lora_run: Path, tmp_path: Path, genevolve: Command) -> None:
    run = tmp_path / "run"
    shutil.copytree(lora_run, run)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    stored["policy"]["model"] = "org/base@0123456789012345678901234567890123456789"
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert genevolve("export", run, "--out", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    head, text = card_of(tmp_path / "out")
    assert head["base_model"] == "org/base"
    assert "| base model | org/base@0123456789012345678901234567890123456789 |" in text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--step", "2"], "--step 2: that step is committed, but has no checkpoint; checkpoints: 1, 3"),
        (["--step", "9"], "--step 9"),
        (["--step", "1", "--best"], "exclude each other"),
        (["--merge-lora"], "--merge-lora"),
        (["--licence", "Do what you want"], "--licence"),
        (["--base", "/models/base"], "--base"),
        (["--push", "name"], "write ORG/NAME"),
    ],
)
def test_what_cannot_be_exported_is_named(
    options: list[str], named: str, run: Path, tmp_path: Path, genevolve: Command
) -> None:
    ended = genevolve("export", run, "--out", tmp_path / "out", *options)
    assert (ended.code, len(ended.err.strip().splitlines())) == (2, 1)
    assert named in ended.err
    assert not list(tmp_path.iterdir())


def test_an_upload_needs_a_hub_and_a_token(
    run: Path, tmp_path: Path, genevolve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = genevolve("export", run, "--out", tmp_path / "out", "--push", "org/name")
    assert ended.code == 2 and "HF_HUB_OFFLINE forbids the use of a hub" in ended.err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    ended = genevolve("export", run, "--out", tmp_path / "out", "--push", "org/name")
    assert ended.code == 2 and "set HF_TOKEN" in ended.err
    assert not list(tmp_path.iterdir())


def test_an_export_is_uploaded_as_a_private_repository(hub: Hub, run: Path, tmp_path: Path, genevolve: Command) -> None:
    out = tmp_path / "out"
    ended = genevolve("export", run, "--out", out, "--push", "org/name")
    assert (ended.code, ended.err) == (0, "")
    assert f"uploaded to {hub.url}/org/name ({COMMIT[:8]})" in ended.out
    [created] = hub.created
    assert (created["organization"], created["name"], created["visibility"]) == ("org", "name", "private")
    assert set(hub.uploaded) == {path.name for path in out.iterdir()}
    assert hub.uploaded["README.md"] == (out / "README.md").read_bytes()
    assert hub.token not in ended.out + (out / "README.md").read_text()


def test_a_refusal_of_the_hub_ends_with_one_line_and_keeps_the_folder(
    hub: Hub, run: Path, tmp_path: Path, genevolve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "y" * 30)
    ended = genevolve("export", run, "--out", tmp_path / "out", "--push", "org/name")
    assert (ended.code, len(ended.err.strip().splitlines())) == (2, 1)
    assert "--push org/name" in ended.err and "401" in ended.err and "y" * 30 not in ended.err
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_hub_that_cannot_be_reached_is_one_line(
    hub: Hub, run: Path, tmp_path: Path, genevolve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ended = genevolve("export", run, "--out", tmp_path / "out", "--push", "org/name")
    assert (ended.code, len(ended.err.strip().splitlines())) == (1, 1)
    assert "cannot be reached" in ended.err


def test_an_adapter_without_a_base_on_a_hub_is_not_uploaded(
    hub: Hub, lora_run: Path, tmp_path: Path, genevolve: Command
) -> None:
    ended = genevolve("export", lora_run, "--out", tmp_path / "out", "--push", "org/name")
    assert ended.code == 2 and "--base ORG/NAME" in ended.err
    assert not list(tmp_path.iterdir()) and not hub.created
