"""A file holds what differs from its base; the rest comes from the base, and errors name the file where a key stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.config import ConfigError, RunConfig, load_config
from genevolve_ray.doctor.preflight import preflight
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.run import RunStore, StoreError


def write(folder: Path, **texts: str) -> str:
    """Write `NAME.yaml` files and return the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{next(iter(texts))}.yaml")


def load(folder: Path, text: str, *overrides: str, **others: str) -> RunConfig:
    return load_config(write(folder, own=text, **others), overrides)


def test_a_file_that_only_extends_equals_its_preset_and_records_it(tmp_path: Path) -> None:
    config, preset = load(tmp_path, "extends: paper\n"), load_config("paper")
    assert config.layers == (str(tmp_path / "own.yaml"), "paper")
    assert preset.layers == ("paper",)
    assert config.model_copy(update={"layers": ()}) == preset.model_copy(update={"layers": ()})


def test_mappings_merge_lists_and_plain_values_replace(tmp_path: Path) -> None:
    config = load(tmp_path, "extends: atlas\nloop: {steps: 3}\nlearner: {betas: [0.8, 0.9], ved: {rho_cap: 1.5}}\n")
    atlas = load_config("atlas")
    assert (config.loop.steps, config.loop.parity_limit) == (3, atlas.loop.parity_limit)
    assert config.learner.betas == (0.8, 0.9)
    assert (config.learner.ved.rho_cap, config.learner.ved.coefficient) == (1.5, atlas.learner.ved.coefficient)


def test_layers_are_relative_to_the_file_that_names_them_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "base.yaml").write_text("extends: deeper.yaml\nseed: 2\nname: base\n")
    (tmp_path / "team" / "deeper.yaml").write_text("extends: atlas\nseed: 3\nloop: {steps: 5}\n")
    config = load(tmp_path, "extends: team/base.yaml\nname: own\n", "loop.steps=7")
    assert (config.name, config.seed, config.loop.steps, config.profile) == ("own", 2, 7, "atlas")
    names = [str(tmp_path / name) for name in ("own.yaml", "team/base.yaml", "team/deeper.yaml")]
    assert config.layers == (*names, "atlas")


BASE = """\
extends: atlas
renderer: {type: qwen-service, config: {url: ["http://a:1"], model: m}, runtime_env: {env_vars: {A: b}}}
judge: {type: local, config: {backend: vllm, repairs: 1, model: {model: /m, tensor_parallel_size: 2}}}
"""


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("renderer: {type: gemini}", {}),
        ("renderer: {type: gemini, config: {model: g}}", {"model": "g"}),
        ("renderer: {config: {model: n}}", {"url": ["http://a:1"], "model": "n"}),
        ("renderer: {type: qwen-service, config: {url: [b]}}", {"url": ["b"], "model": "m"}),
        (
            "renderer: {type: 'genevolve_ray.renderers.qwen_service:QwenServiceRenderer'}",
            {"url": ["http://a:1"], "model": "m"},
        ),
        ("renderer: {type: 'other:Kind', config: {a: 1}}", {"a": 1}),
    ],
)
def test_a_plug_in_of_another_type_takes_nothing_from_the_base(
    tmp_path: Path, text: str, config: dict[str, Any]
) -> None:
    made = load(tmp_path, f"extends: base.yaml\n{text}\n", base=BASE)
    assert made.renderer.config == config
    kept = "gemini" not in text and "other" not in text
    assert bool(made.renderer.runtime_env) == kept


@pytest.mark.parametrize("role", ["requests", "tools", "renderer", "judge", "summariser"])
def test_every_role_is_a_plug_in_in_files_and_overrides(tmp_path: Path, role: str) -> None:
    base = f"extends: atlas\n{role}: {{type: 'a:A', config: {{x: 1, y: {{z: 2}}}}}}\n"
    same = load(tmp_path, f"extends: base.yaml\n{role}: {{config: {{y: {{w: 3}}}}}}\n", base=base)
    assert getattr(same, role).config == {"x": 1, "y": {"z": 2, "w": 3}}
    other = load(tmp_path, f"extends: base.yaml\n{role}: {{type: 'b:B'}}\n", base=base)
    assert getattr(other, role).config == {}
    option = load(tmp_path, base, f"{role}.config.k=4", f"{role}.type=b:B")
    assert (getattr(option, role).type, getattr(option, role).config) == ("b:B", {"k": 4})


OWN = "{type: 'genevolve_ray.commands.plugin_templates.embedder:MyEmbedder', config: {dimension: 64}}"


@pytest.mark.parametrize(
    ("base", "own", "kind"),
    [("{kind: transformers, transformers: {model: m}}", OWN, "plugin"), (OWN, "{kind: hashing}", "hashing")],
)
def test_an_embedder_of_ones_own_and_a_built_in_one_replace_each_other(
    tmp_path: Path, base: str, own: str, kind: str
) -> None:
    below = f"extends: atlas\nexperience: {{embedder: {base}}}\n"
    embedder = load(tmp_path, f"extends: base.yaml\nexperience: {{embedder: {own}}}\n", base=below).experience.embedder
    assert (embedder.kind, bool(embedder.type)) == (kind, kind == "plugin")


def test_the_settings_of_an_embedder_of_ones_own_are_checked_before_the_start() -> None:
    key = "experience.embedder"
    config = load_config("atlas", [f"{key}={OWN}", f"{key}.config.dimension=3"])
    with pytest.raises(UserFault, match=r"experience.embedder.config.dimension: .*greater than or equal to 8, got 3"):
        preflight(config, model=False)
    preflight(load_config("atlas", [f"{key}={OWN}"]), model=False)


def test_a_run_resumes_with_its_own_embedder_only(tmp_path: Path) -> None:
    RunStore.open(str(tmp_path / "run"), load_config("atlas", [f"experience.embedder={OWN}"]), run_seed=1).close()
    with pytest.raises(StoreError, match=r"another configuration: experience.embedder.*was .*MyEmbedder"):
        RunStore.open(str(tmp_path / "run"), load_config("atlas"), run_seed=1)


def test_the_model_of_another_backend_is_not_merged(tmp_path: Path) -> None:
    made = load(
        tmp_path, "extends: base.yaml\njudge: {config: {backend: transformers, model: {model: /n}}}\n", base=BASE
    )
    assert made.judge.config == {"backend": "transformers", "repairs": 1, "model": {"model": "/n"}}


@pytest.mark.parametrize(
    ("base", "own", "rank"),
    [
        ("lora: {rank: 8}", "lora: null", None),
        ("lora: {rank: 8}", "lora: {}", 8),
        ("lora: {rank: 8}", "lora: {alpha: 4.0}", 8),
        ("lora: null", "lora: {}", 16),
        ("lr: 1.0e-4", "lora: {}", 16),
        ("lr: 1.0e-4", "lora: {rank: 4}", 4),
    ],
)
def test_a_group_is_switched_off_by_null_and_on_by_a_mapping(
    tmp_path: Path, base: str, own: str, rank: int | None
) -> None:
    lora = load(
        tmp_path, f"extends: base.yaml\nlearner: {{{own}}}\n", base=f"extends: atlas\nlearner: {{{base}}}\n"
    ).learner.lora
    assert (lora.rank if lora else None) == rank


def test_an_override_below_a_group_that_is_off_switches_it_on() -> None:
    lora = load_config("atlas", ["learner.lora=null", "learner.lora.rank=8"]).learner.lora
    assert lora is not None
    assert lora.rank == 8


@pytest.mark.parametrize(
    ("own", "others", "message"),
    [
        (
            "seed: 1\nextends: papr\n",
            {},
            r"own\.yaml: line 2: extends: unknown preset 'papr', did you mean paper\?; known: .*paper",
        ),
        ("extends: nowhere.yaml\n", {}, r"own\.yaml: line 1: extends: .*nowhere\.yaml"),
        ("extends: [paper]\n", {}, r"own\.yaml: line 1: extends: name one preset or \.yaml file, got \['paper'\]"),
        ("extends: 3\n", {}, r"own\.yaml: line 1: extends: name one preset or \.yaml file, got 3"),
        ("extends:\nseed: 1\n", {}, r"own\.yaml: line 1: extends: .* got None"),
        ("extends: own.yaml\n", {}, r"own\.yaml: line 1: extends: .*own\.yaml -> .*own\.yaml is a cycle"),
        (
            "extends: b.yaml\n",
            {"b": "seed: 1\nextends: own.yaml\n"},
            r"b\.yaml: line 2: extends: .*own\.yaml -> .*b\.yaml -> .*own\.yaml is a cycle",
        ),
        ("extends: b.yaml\n", {"b": "- a\n"}, r"own\.yaml: line 1: extends: .*b\.yaml: .*mapping of keys, got list"),
        ("extends: b.yaml\n", {"b": "a: [\n"}, r"own\.yaml: line 1: extends: .*b\.yaml: line 2: "),
        ("loop: {extends: paper}\n", {}, r"own\.yaml: line 1: loop\.extends: unknown key"),
    ],
)
def test_a_base_that_cannot_be_read_is_named_with_file_and_line(
    tmp_path: Path, own: str, others: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load(tmp_path, own, **others)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("own", "base", "message"),
    [
        ("seed: 2\n", "loop: {steps: 0}\n", r"base\.yaml: line 2: loop\.steps: "),
        ("loop: {steps: 0}\n", "loop: {steps: 3}\n", r"own\.yaml: line 2: loop\.steps: "),
        ("seed: 2\n", "seed: 1\nlop: 2\n", r"base\.yaml: line 3: lop: unknown key"),
        ("loop: 3\n", "loop: {steps: 3}\n", r"own\.yaml: line 2: loop: .* got 3"),
        ("learner: null\n", "seed: 1\n", r"own\.yaml: line 2: learner: .* got None"),
        ("engine:\n  dtype: x\n", "seed: 1\n", r"own\.yaml: line 3: engine\.dtype: "),
        (
            "learner:\n  betas: [0.9, x]\n",
            "learner:\n\n  betas: [x, 0.9]\n",
            r"^\S*own\.yaml: line 3: learner\.betas\.1: [^;]*$",
        ),
    ],
)
def test_a_bad_value_names_the_file_where_it_stands(tmp_path: Path, own: str, base: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"extends: base.yaml\n{own}", base=f"extends: atlas\n{base}")


def test_an_option_names_no_base() -> None:
    with pytest.raises(ConfigError, match="--set extends=paper: a YAML file names its base"):
        load_config("atlas", ["extends=paper"])


def test_a_run_resumes_from_another_file_with_the_same_values(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    first = load(tmp_path, "extends: atlas\nseed: 4\n")
    with RunStore.open(run, first) as store:
        assert store.config["layers"] == list(first.layers)
    second = load_config(write(tmp_path, copy="extends: own.yaml\n", own="extends: atlas\nseed: 4\n"))
    with RunStore.open(run, second) as store:
        assert store.config["layers"][0].endswith("copy.yaml")
    with pytest.raises(StoreError, match="seed: was 4, is 5"):
        RunStore.open(run, load(tmp_path, "extends: atlas\nseed: 5\n"))
    resolved = load_config(f"{run}/config.yaml")
    assert resolved.layers == (f"{run}/config.yaml", *second.layers)
    assert resolved.model_copy(update={"layers": second.layers}) == second
