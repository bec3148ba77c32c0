"""Presets, files and overrides become one validated configuration, or one message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.config import ConfigError, RunConfig, load_config, presets, validate_config
from genevolve_ray.tools.showing import Observations


def plain() -> dict[str, object]:
    return load_config("atlas").model_dump(mode="json")


def test_every_preset_is_valid() -> None:
    assert {"atlas", "paper"} <= set(presets())
    assert all(load_config(preset).name for preset in presets())


def test_the_paper_preset_holds_the_papers_figures() -> None:
    config = load_config("paper")
    assert (config.loop.requests_per_step, config.loop.group_size, config.heldout.requests) == (8, 6, 594)
    assert (config.sampling.temperature, config.sampling.top_p, config.learner.lr) == (0.7, 0.95, 1e-6)
    grpo = config.learner.grpo
    assert (grpo.clip_low, grpo.clip_high, config.learner.kl.coefficient) == (0.20, 0.28, 1e-3)
    assert (config.engine.dtype, config.learner.dtype) == ("bfloat16", "bfloat16")
    blind = config.protocol.model_copy(update={"name": "release", "observations": Observations()})
    assert blind == PROFILES["release"] and config.protocol.observations.images
    assert config.engine.vllm.max_images == 10 * 5, "searches of an episode and hits of a search"


def test_the_paper_preset_names_real_parts() -> None:
    config = load_config("paper")
    names = {
        role: getattr(config, role).type.partition(":")[2] for role in ("tools", "renderer", "judge", "summariser")
    }
    assert names == {
        "tools": "WebTools",
        "renderer": "QwenServiceRenderer",
        "judge": "EndpointJudge",
        "summariser": "EndpointSummariser",
    }
    render, judge = config.renderer.build().config, config.judge.build().config
    assert (render.num_inference_steps, render.true_cfg_scale, render.model) == (40, 4.0, "Qwen-Image-Edit-2511")
    assert (judge.formula, judge.kscore.token_env) == (config.reward.formula, "GEMINI_API_KEY")
    summariser = config.summariser.build().config
    assert (summariser.min_words, summariser.max_words, summariser.url) == (12, 22, judge.kscore.url)
    assert config.experience.embedder.transformers.model.endswith("Qwen3-Embedding-0.6B")


def test_overrides_reach_nested_keys_in_order() -> None:
    config = load_config("atlas", ["loop.group_size=4", "reward.call_cost=0", "loop.group_size=5", "learner.lr=1e-3"])
    assert (config.loop.group_size, config.reward.call_cost, config.learner.lr) == (5, 0.0, 1e-3)


def test_an_override_may_be_a_whole_group() -> None:
    config = load_config("atlas", ["renderer={type: 'pkg:R', config: {a: 1}}"])
    assert (config.renderer.type, config.renderer.config) == ("pkg:R", {"a": 1})


def test_a_file_is_a_preset_too(tmp_path: Path) -> None:
    dumped = load_config("atlas").model_dump_json()
    (tmp_path / "own.yaml").write_text(dumped)  # JSON is YAML.
    assert load_config(str(tmp_path / "own.yaml"), ["seed=9"]).seed == 9


def test_a_resolved_configuration_resolves_to_itself() -> None:
    config = load_config("atlas", ["deterministic=true", "engine.kind=transformers"])
    assert validate_config(config.model_dump(mode="json")) == config


def test_deterministic_decides_engine_and_learner() -> None:
    config = load_config("atlas", ["deterministic=true", "engine.kind=transformers", "learner.threads=4"])
    assert config.engine.transformers.deterministic
    assert (config.engine.transformers.threads, config.learner.threads) == (1, 1)
    assert config.engine.max_concurrent == load_config("atlas").engine.max_concurrent
    loose = load_config("atlas", ["engine.kind=transformers", "learner.threads=4"])
    assert not loose.engine.transformers.deterministic
    assert loose.learner.threads == 4


def test_deterministic_compiles_nothing() -> None:
    with pytest.raises(ConfigError, match="deterministic=true needs learner.compile=false"):
        load_config("atlas", ["deterministic=true", "engine.kind=transformers", "learner.compile=true"])


def test_the_held_out_comparison_can_be_switched_off() -> None:
    assert load_config("atlas", ["heldout.requests=0"]).heldout.requests == 0


def bare(tmp_path: Path, text: str = "") -> RunConfig:
    """Load a file with the parts of a run alone."""
    parts = "".join(f"{role}: {{type: atlas}}\n" for role in ("requests", "tools", "renderer", "judge"))
    (tmp_path / "bare.yaml").write_text(f"policy: {{model: 'genevolve_ray.atlas:cold_start'}}\n{parts}{text}")
    return load_config(str(tmp_path / "bare.yaml"))


@pytest.mark.parametrize(
    ("text", "temperature"),
    [
        ("", 0.7),
        ("sampling: {temperature: 0.5}\n", 0.5),
        ("learner: {temperature: 0.9}\n", 0.9),
        ("learner: {lr: 1.0e-4}\nsampling: {temperature: 0.5, top_p: 1.0}\n", 0.5),
        ("learner: {temperature: 0.4, lr: 1.0e-4}\nsampling: {top_p: 1.0}\n", 0.4),
        ("learner: {temperature: 0.4}\nsampling: {temperature: 0.4}\n", 0.4),
    ],
)
def test_sampling_and_learner_share_a_temperature_that_is_given_once(
    tmp_path: Path, text: str, temperature: float
) -> None:
    config = bare(tmp_path, text)
    assert (config.sampling.temperature, config.learner.temperature) == (temperature, temperature)


def test_two_temperatures_are_refused_with_the_line_of_one(tmp_path: Path) -> None:
    text = "learner: {temperature: 0.4}\nsampling: {temperature: 0.5}\n"
    with pytest.raises(ConfigError, match=r"bare\.yaml: line 6: .*learner.temperature=0.4, sampling.temperature=0.5"):
        bare(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("sampling: {top_p: 1.0}\n", 1e-4),
        ("sampling: {top_p: 0.95}\n", 1e-4 + 0.0513),
        ("sampling: {top_p: 1.0}\nengine: {dtype: bfloat16}\n", 0.03),
        ("sampling: {top_p: 1.0}\nlearner: {dtype: bfloat16}\n", 0.03),
        ("loop: {parity_limit: 0.5}\n", 0.5),
    ],
)
def test_the_parity_limit_follows_dtypes_and_truncation(tmp_path: Path, text: str, limit: float) -> None:
    assert bare(tmp_path, text).loop.parity_limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("", None),
        ("engine: {dtype: bfloat16}\n", "bfloat16"),
        ("learner: {dtype: bfloat16}\n", "bfloat16"),
        ("engine: {dtype: float16}\n", None),
        ("engine: {dtype: bfloat16}\nlearner: {publish_dtype: float32}\n", "float32"),
    ],
)
def test_weights_are_published_in_the_type_that_engine_or_learner_compute_in(
    tmp_path: Path, text: str, dtype: str | None
) -> None:
    assert bare(tmp_path, text).learner.published_dtype == dtype


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", 48),
        ("loop: {requests_per_step: 32}\n", 192),
        ("loop: {requests_per_step: 32, max_running: 100}\n", 100),
        ("loop: {requests_per_step: 2}\n", 48),
        ("loop: {requests_per_step: 64}\n", 256),
        ("loop: {requests_per_step: 32}\ncluster: {rollout_workers: 3}\n", 64),
        ("loop: {requests_per_step: 10, mode: async, max_staleness: 2}\n", 180),
        ("loop: {requests_per_step: 32}\nengine: {max_concurrent: 7}\n", 7),
    ],
)
def test_concurrency_follows_the_step_unless_it_is_given(tmp_path: Path, text: str, places: int) -> None:
    config = bare(tmp_path, text)
    assert config.engine.max_concurrent == places
    assert validate_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("profile", "longest", "budget"), [("release", 36144, 36144), ("atlas", 1712, 4096)])
def test_lengths_follow_the_profile_unless_they_are_given(
    tmp_path: Path, profile: str, longest: int, budget: int
) -> None:
    config = bare(tmp_path, f"profile: {profile}\n")
    assert config.learner.token_budget == budget
    assert config.engine_for(262144).max_model_len == longest
    assert config.engine_for(None).max_model_len == longest
    assert config.engine_for(1024).max_model_len == 1024
    given = bare(tmp_path, f"profile: {profile}\nengine: {{max_model_len: 700}}\nlearner: {{token_budget: 800}}\n")
    assert (given.engine_for(262144).max_model_len, given.learner.token_budget) == (700, 800)


@pytest.mark.parametrize(
    ("engine", "mib"),
    [("{device: cuda}", None), ("{device: cuda, vllm: {kv_cache_mib: 512}}", 512), ("{}", 256)],
)
def test_vllm_sizes_its_cache_on_a_gpu_alone(tmp_path: Path, engine: str, mib: int | None) -> None:
    assert bare(tmp_path, f"engine: {engine}\n").engine.vllm.kv_cache_mib == mib


def test_the_reward_takes_the_formula_of_the_judge_unless_one_is_given(tmp_path: Path) -> None:
    assert bare(tmp_path).reward.formula == "paper"
    assert bare(tmp_path, "reward: {formula: release-eval}\n").reward.formula == "release-eval"
    kept = bare(tmp_path, "reward: {call_cost: 0.25}\n").reward
    assert (kept.formula, kept.call_cost) == ("paper", 0.25)


def test_a_resolved_configuration_keeps_what_it_derived(tmp_path: Path) -> None:
    config = bare(tmp_path, "engine: {dtype: bfloat16}\n")
    assert validate_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.group_sise=4", r"^--set loop.group_sise: unknown key .value 4., did you mean loop.group_size\?"),
        ("lop.steps=4", r"^--set lop: unknown key .*, did you mean loop\?"),
        ("loop.group_size=1", "loop.group_size: .*greater than or equal to 2, got 1"),
        ("loop.group_size=six", "loop.group_size: .*integer.*, got 'six'"),
        ("loop.group_size=2.5", "loop.group_size: .*integer.*, got 2.5"),
        ("loop.max_staleness=-1", "loop.max_staleness: .*greater than or equal to 0, got -1"),
        ("loop.parity_limit=.nan", "loop.parity_limit: .*finite number, got nan"),
        ("seed=-3", "seed: .*greater than or equal to 0, got -3"),
        ("name=a/b", "name: .*got 'a/b'"),
        ("engine.kind=sglang", "engine.kind: .*'vllm' or 'transformers', got 'sglang'"),
        ("loop=3", "loop: .*got 3"),
        ("policy={}", "policy.model: missing"),
        ("profile=nobody", "profile 'nobody' is unknown; known: atlas"),
        ("learner.temperature=0.5", "learner.temperature=0.5, sampling.temperature=0.7"),
        ("deterministic=true", "deterministic=true needs engine.kind=transformers, got 'vllm'"),
        ("engine.transformers.deterministic=true", "transformers.deterministic is set, but kind is 'vllm'"),
        ("reward={image_weight: 0, text_weight: 0}", "image_weight=0.0, text_weight=0.0"),
        ("tools.type=not a path", "tools.type: .*got 'not a path'"),
        ("loop.group_size", "--set 'loop.group_size': write key=value"),
        ("=3", "--set '=3': write key=value"),
        ("loop.steps={1", "--set loop.steps: '{1' is not a YAML value"),
        ("seed.deep=3", "seed.deep: seed is a value, not a group of keys"),
    ],
)
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("atlas", [override])


def test_every_fault_is_listed() -> None:
    with pytest.raises(ConfigError, match="loop.group_size: .*; .*loop.x: unknown key"):
        load_config("atlas", ["loop.group_size=0", "loop.x=1"])


def test_an_unknown_preset_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'atlass', did you mean atlas\?; known: .*atlas"):
        load_config("atlass")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"- a\n", "mapping of keys, got list"), (b"", "got NoneType"), (b"a: [", "own.yaml: "), (b"\xff\xfe\x00", "own")],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "own.yaml"))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))


def own(tmp_path: Path, text: str) -> str:
    import yaml

    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode() + yaml.safe_dump(plain()).encode())
    return str(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("loop: {steps: 3}\n", r"own\.yaml: line \d+: key 'loop' is given twice"),
        ("x: 010\n", r"own\.yaml: line 1: 010 starts with 0, as octal numbers do: write 10"),
        ("extra: 1\n", r"own\.yaml: line 1: extra: unknown key"),
        ("sampeling: {top_p: 1}\n", r"own\.yaml: line 1: sampeling: unknown key .*, did you mean sampling\?"),
    ],
)
def test_a_fault_of_a_file_names_key_and_line(tmp_path: Path, head: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(own(tmp_path, head))


def test_a_bad_value_of_a_file_names_its_line_unless_it_was_overridden(tmp_path: Path) -> None:
    path = own(tmp_path, "")
    text = Path(path).read_text(encoding="utf-8-sig")
    written = f"  group_size: {load_config('atlas').loop.group_size}"
    line = text.splitlines().index(written) + 1
    Path(path).write_text(text.replace(written, "  group_size: true", 1))
    with pytest.raises(ConfigError, match=rf"own\.yaml: line {line}: loop\.group_size: a number is expected, got True"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"^loop\.group_size: "):
        load_config(path, ["loop.group_size=1"])
    assert load_config(path, ["loop.group_size=3"]).loop.group_size == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.steps=true", "loop.steps: a number is expected, got True"),
        ("loop.steps=010", r"--set loop\.steps: '010' is not a YAML value: 010 starts with 0"),
        ("loop.steps='010'", "loop.steps: a number without a leading zero is expected, got '010'"),
        ("loop={steps: 1, steps: 2}", "--set loop: .*key 'steps' is given twice"),
        ("sampling.temperature=false", "sampling.temperature: a number is expected, got False"),
    ],
)
def test_overrides_are_read_as_strictly(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("atlas", [override])


def test_one_key_of_a_named_profile_is_set() -> None:
    config = load_config("atlas", ["profile.max_references=1", "profile.answers=published"])
    assert (config.protocol.max_references, config.protocol.answers, config.protocol.prompt) == (
        1,
        "published",
        "atlas",
    )
    assert config.protocol.name == f"atlas+{config.protocol.digest}"


def test_rows_are_sampled_as_the_profile_proposes_unless_it_is_set() -> None:
    def sampled(*settings: str) -> tuple[float, float]:
        inference = load_config("atlas", settings).inference
        return inference.temperature, inference.top_p

    assert sampled("inference={}", "profile=release") == (0.6, 0.9)
    assert sampled("inference={temperature: 0}", "profile=release") == (0.0, 0.9)
    assert sampled("inference={}", "profile=atlas") == (0.7, 0.95)


def test_a_profile_survives_the_resolved_configuration(tmp_path: Path) -> None:
    (tmp_path / "words.md").write_text("Own words.\n{{tools}}\n")
    config = load_config("atlas", [f"profile={{extends: atlas, prompt: {tmp_path / 'words.md'}}}"])
    (tmp_path / "words.md").unlink()
    (tmp_path / "again.yaml").write_text(config.model_dump_json())
    assert load_config(str(tmp_path / "again.yaml")).protocol == config.protocol


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extend: paper",
            "own.yaml: line 1: extend: unknown key (value 'paper'), did you mean extends?; policy: missing",
        ),
        ("extends: paper.yaml", "No such file or directory"),
        ("extends: paper.yaml", "; the preset is `paper`"),
        ("extends: atlas\nlearner.kl.coefficient: 1", "; a file nests it: learner: {kl: {coefficient: ...}}"),
        ("extends: atlas\nrenderer: gemini", "got 'gemini'; write renderer: {type: gemini}"),
        ("extends: atlas\nexperience: false", "line 2: experience: a group of keys is expected, got False"),
        ("extends: atlas\nlayers: paper", "layers: a run records the files that it was started with here, got 'paper'"),
    ],
)
def test_a_key_of_another_form_is_answered_with_the_right_one(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(str(tmp_path / "own.yaml"))


def test_the_recorded_layers_are_no_setting() -> None:
    with pytest.raises(ConfigError, match="--set layers="):
        load_config("atlas", ["layers=[paper]"])
