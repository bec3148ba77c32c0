"""The adapter: it starts as the identity, learns alone, and leaves in layouts that others read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from learning_fakes import sequences
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from genevolve_ray.commands.policies import policy_folder
from genevolve_ray.learning.config import KlConfig, LearnerConfig, LoraConfig
from genevolve_ray.learning.lora import export_merged
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.step import Learner

LORA = LoraConfig(rank=4, alpha=8.0)
CONFIG = LearnerConfig(lr=1e-2, temperature=0.7, lora=LORA)
PLAIN = CONFIG.model_copy(update={"lora": None})
PROBE = [3, 9, 27, 41, 5]


def trained(model_dir: Path, config: LearnerConfig = CONFIG, steps: int = 2) -> Learner:
    learner = Learner(model_dir, config)
    for step in range(steps):
        learner.train_step(sequences(seed=step), step)
    return learner


def test_a_fresh_adapter_is_the_identity(model_dir: Path) -> None:
    batch = sequences()
    assert Learner(model_dir, CONFIG).score(batch) == Learner(model_dir, PLAIN).score(batch)


def test_the_seed_decides_the_adapter_and_nothing_else_does(model_dir: Path) -> None:
    before = torch.get_rng_state()
    hashes = []
    for seed in (0, 0, 1):
        lora = LORA.model_copy(update={"seed": seed})
        hashes.append(Learner(model_dir, CONFIG.model_copy(update={"lora": lora})).state_hash())
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_changes_the_adapter_alone(model_dir: Path) -> None:
    learner = Learner(model_dir, CONFIG)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.train_step(sequences(), 0)
    changed = {name for name, tensor in learner.model.state_dict().items() if not torch.equal(tensor, before[name])}
    # A's gradient is zero while B is: the first step moves B only, in all seven linear modules of both layers.
    assert changed == {name for name in before if ".lora_B.default." in name} and len(changed) == 14
    learner.train_step(sequences(), 1)
    changed = {name for name, tensor in learner.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_target_modules_are_those_that_are_named(model_dir: Path) -> None:
    lora = LORA.model_copy(update={"target_modules": ("q_proj", "v_proj")})
    names = Learner(model_dir, CONFIG.model_copy(update={"lora": lora})).state_dict()["model"]
    assert {name.split(".")[4] for name in names} == {"q_proj", "v_proj"}


def test_what_is_no_linear_module_cannot_be_adapted(model_dir: Path) -> None:
    lora = LORA.model_copy(update={"target_modules": ("embed_tokens",)})
    with pytest.raises(ValueError, match="LoRA target model.embed_tokens is a Embedding, not a Linear"):
        Learner(model_dir, CONFIG.model_copy(update={"lora": lora}))
    with pytest.raises(ValueError, match=r"target_modules=\(\) selects nothing"):
        LoraConfig(target_modules=())


def test_a_checkpoint_restores_hash_and_next_step(model_dir: Path, tmp_path: Path) -> None:
    first = trained(model_dir)
    first.save(tmp_path)
    second = Learner(model_dir, CONFIG)
    second.load(tmp_path)
    assert second.state_hash() == first.state_hash()
    a, b = (learner.train_step(sequences(seed=9), 2) for learner in (first, second))
    assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])
    assert second.state_hash() == first.state_hash()


def test_a_checkpoint_loads_unchanged_in_peft_and_transformers(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    learner.save(tmp_path)
    expected = learner.raw_logprobs(PROBE)
    for model in (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),  # reads the base from adapter_config.json
    ):
        assert logprobs(model) == pytest.approx(expected, abs=1e-5)


def logprobs(model: torch.nn.Module) -> list[float]:
    with torch.no_grad():
        plain = model(torch.tensor([PROBE])).logits[0].log_softmax(-1)
    return [plain[t, PROBE[t + 1]].item() for t in range(len(PROBE) - 1)]


def test_whole_weights_are_the_merged_ones(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    learner.write_merged(tmp_path)
    shutil.copyfile(model_dir / "config.json", tmp_path / "config.json")
    merged = Learner(tmp_path, PLAIN)
    assert merged.raw_logprobs(PROBE) == pytest.approx(learner.raw_logprobs(PROBE), abs=1e-5)
    assert merged.raw_logprobs(PROBE) != pytest.approx(Learner(model_dir, PLAIN).raw_logprobs(PROBE), abs=1e-2)
    base = load_file(model_dir / "model.safetensors")
    assert {n: t.shape for n, t in load_file(tmp_path / "model.safetensors").items()} == {
        n: t.shape for n, t in base.items()
    }


def test_the_export_is_what_peft_merges(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    learner.save(tmp_path / "checkpoint")
    learner.write_merged(tmp_path / "merged")
    export_merged(tmp_path / "checkpoint", tmp_path / "export")
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "export"))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)
    assert logprobs(load_policy(tmp_path / "export")) == pytest.approx(learner.raw_logprobs(PROBE), abs=1e-5)


def test_an_export_names_what_is_missing(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors"):
        export_merged(model_dir, tmp_path / "out")
    Learner(model_dir, CONFIG).save(tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="'.*nowhere' does not exist"):
        export_merged(tmp_path / "adapter", tmp_path / "out", tmp_path / "nowhere")


def test_an_adapter_is_benched_as_a_merged_model(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    learner.save(tmp_path)
    with policy_folder(tmp_path) as folder:
        assert logprobs(load_policy(folder)) == pytest.approx(learner.raw_logprobs(PROBE), abs=1e-5)
    assert not folder.exists()
    with policy_folder(model_dir) as folder:
        assert folder == model_dir


def test_there_is_no_adapter_to_write_where_all_weights_are_trained(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"learner\.lora is not set"):
        Learner(model_dir, PLAIN).write_adapter(tmp_path)


def reference_scores(learner: Learner) -> list[float]:
    [batch] = learner._passes.split(sequences(1))
    scores = learner._passes.reference_logprobs(batch)
    assert scores is not None
    return scores.tolist()


def test_the_reference_is_the_base_without_a_second_model(model_dir: Path) -> None:
    learner = trained(model_dir, CONFIG.model_copy(update={"kl": KlConfig(coefficient=0.1)}))
    assert learner._passes._reference is learner.model
    [expected] = Learner(model_dir, PLAIN).score(sequences(1))
    assert reference_scores(learner) == expected
    assert learner.score(sequences(1)) != [expected], "the adapter is on again"


def test_going_on_from_an_adapter_refers_to_that_adapter(model_dir: Path, tmp_path: Path) -> None:
    first = trained(model_dir)
    first.save(tmp_path)
    [expected] = first.score(sequences(1))
    started = CONFIG.model_copy(
        update={"lora": LORA.model_copy(update={"start": str(tmp_path)}), "kl": KlConfig(coefficient=0.1)}
    )
    learner = Learner(model_dir, started)
    assert learner.score(sequences(1)) == [expected]
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.train_step(sequences(), 0)
    changed = {name for name, tensor in learner.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".default." in name}
    assert reference_scores(learner) == expected
    assert not any("reference" in name for name in learner.state_dict()["model"])


def test_a_starting_adapter_must_fit_the_settings(model_dir: Path, tmp_path: Path) -> None:
    Learner(model_dir, CONFIG).save(tmp_path)
    lora = LoraConfig(rank=8, alpha=8.0, start=str(tmp_path))
    with pytest.raises(ValueError, match="has rank 4, alpha 8, dropout 0; the settings have rank 8, alpha 8"):
        Learner(model_dir, CONFIG.model_copy(update={"lora": lora}))
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        gone = lora.model_copy(update={"start": str(tmp_path / "nowhere")})
        Learner(model_dir, CONFIG.model_copy(update={"lora": gone}))


def test_a_bfloat16_base_stays_and_its_adapter_is_float32(model_dir: Path) -> None:
    learner = trained(model_dir, CONFIG.model_copy(update={"dtype": "bfloat16"}), steps=1)
    dtypes = {(".lora_" in name, tensor.dtype) for name, tensor in learner.model.state_dict().items()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    exact = Learner(model_dir, PLAIN).score(sequences())
    rough = Learner(model_dir, CONFIG.model_copy(update={"dtype": "bfloat16"})).score(sequences())
    gaps = [abs(a - b) for x, y in zip(exact, rough, strict=True) for a, b in zip(x, y, strict=True)]
    assert 0 < sum(gaps) / len(gaps) < 0.2
