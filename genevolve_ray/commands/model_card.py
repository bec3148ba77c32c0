"""The model card of an exported policy: where it comes from, and the figures that its run measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from genevolve_ray import __version__
from genevolve_ray.evolution.store.manifest import Checkpoint
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.differences import value_at
from genevolve_ray.records.secrets import masked

_ROWS = 12
"""Steps of the table: the first, the last, and some between."""
_COLUMNS = {
    "reward_mean": "reward",
    "reward_image": "image",
    "reward_text": "text",
    "valid_fraction": "valid",
    "tool_calls_mean": "tool calls",
}


@dataclass(frozen=True)
class CardFacts:
    """Hold what a card is about: a run, one of its checkpoints, and the form of the export."""

    store: RunStore
    checkpoint: Checkpoint
    adapter: bool
    merged: bool
    base: str | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration without secrets."""
        found: dict[str, Any] = masked(self.store.config)
        return found

    @property
    def base_name(self) -> str:
        """The model that the run started from: a hub id, or the name of its folder, never a path."""
        named = str(value_at(self.config, "policy.model") or "")
        if _is_hub_like(named) and self.base in (None, named.partition("@")[0]):
            return named
        return self.base or Path(named.partition(":")[2] or named).name

    @property
    def config_digest(self) -> str:
        """SHA-256 of the resolved configuration."""
        return _sha256(self.config)


def card_text(facts: CardFacts, licence: str | None) -> str:
    """Return the text of README.md. A license stands in it only where one is given."""
    head: dict[str, Any] = {"library_name": "peft" if facts.adapter else "transformers"}
    if licence:
        head["license"] = licence
    if _is_hub_like(facts.base_name):
        head["base_model"] = facts.base_name.partition("@")[0]
    head["tags"] = ["genevolve", "image-generation-agent", "grpo", *(["lora"] if facts.adapter else [])]
    name = facts.config.get("name", "run")
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}, step {facts.checkpoint.step}",
        _introduction(facts),
        "## Provenance",
        _table(("what", "value"), _provenance(facts)),
        *_figures(facts),
        "## Use",
        _use(facts),
    ]
    if not licence:
        parts += ["## License", "None is stated. The license of the base applies to what comes from it."]
    return "\n\n".join(parts) + "\n"


def _introduction(facts: CardFacts) -> str:
    form = "A LoRA adapter" if facts.adapter else "Whole weights (a LoRA adapter is merged in)" if facts.merged else ""
    return (
        f"{form or 'Whole weights'} of a policy that searches, looks for reference images, and writes a program for an "
        f"image generator. It was trained with genevolve_ray {facts.store.info.package_version} and exported with "
        f"{__version__}."
    )


def _provenance(facts: CardFacts) -> Iterator[tuple[str, str]]:
    config = facts.config
    yield "run", str(config.get("name", ""))
    yield "started", facts.store.info.created
    yield "base model", facts.base_name
    yield (
        "step",
        f"{facts.checkpoint.step} of {value_at(config, 'loop.steps')} planned ({facts.store.last_step} committed)",
    )
    yield "state hash", f"`{facts.checkpoint.state_hash}`"
    yield "configuration", f"SHA-256 `{facts.config_digest}`"
    for key, label in (
        ("profile", "protocol profile"),
        ("seed", "seed"),
        ("engine.kind", "engine"),
        ("learner.lr", "learning rate"),
        ("learner.kl.coefficient", "KL coefficient"),
        ("learner.ved.coefficient", "VED coefficient"),
        ("experience.enabled", "experience"),
        ("loop.requests_per_step", "requests a step"),
        ("loop.group_size", "rollouts a request"),
    ):
        value = value_at(config, key)
        if value is not None:
            yield label, str(value).lower() if isinstance(value, bool) else str(value)
    yield "reward", ", ".join(f"{key} {value}" for key, value in sorted((config.get("reward") or {}).items()))
    for role in ("requests", "tools", "renderer", "judge"):
        yield role, f"`{value_at(config, f'{role}.type')}`"
    for part, rows in (facts.store.rows().get("parts") or {}).items():
        if rows:
            yield f"{part} rows", f"{len(rows)}, SHA-256 `{_sha256(rows)}`"


def _figures(facts: CardFacts) -> Iterator[str]:
    summary, step = facts.store.summary(), facts.checkpoint.step
    if "heldout_gain" in summary and summary.get("steps") == step:
        low, high = summary["heldout_gain_interval"]
        share = value_at(facts.config, "heldout.confidence")
        yield "## Held-out comparison"
        yield (
            f"Reward on {summary['heldout_pairs']} held-out requests, scored by `{summary.get('score_formula', '')}`. "
            f"The gain has a paired bootstrap interval{f' at {share:.0%}' if isinstance(share, float) else ''}."
        )
        rows = [
            ("before", f"{summary['heldout_reward_sft']:.4f}"),
            ("after", f"{summary['heldout_reward_final']:.4f}"),
            ("gain", f"{summary['heldout_gain']:+.4f} ({low:+.4f} to {high:+.4f})"),
        ]
        yield _table(("policy", "reward"), rows)
    elif "heldout_gain" in summary:
        yield "## Held-out comparison"
        yield f"The run compared step {summary.get('steps')} with its start, not this step."
    if isinstance(score := facts.checkpoint.validation.get("reward_mean"), int | float):
        yield f"Validation reward of this step: {score:.4f}."
    metrics = [row for row in facts.store.metrics() if row["step"] <= step]
    if columns := {key: label for key, label in _COLUMNS.items() if any(key in row for row in metrics)}:
        yield "## Training"
        yield "Means over the rollouts of a step."
        chosen = sorted({round(i * (len(metrics) - 1) / (_ROWS - 1)) for i in range(_ROWS)}) if metrics else []
        yield _table(
            ("step", *columns.values()),
            [
                (str(metrics[i]["step"]), *(_number(metrics[i].get(key)) for key in columns))
                for i in chosen
                if i < len(metrics)
            ],
        )


def _use(facts: CardFacts) -> str:
    lines = ["```bash", "genevolve rollout --input rows.jsonl --output out --policy FOLDER", "```"]
    if facts.adapter:
        return "\n".join(["The folder is in peft's layout and needs its base.", "", *lines])
    return "\n".join(["The folder loads in `transformers` and vLLM as it stands.", "", *lines])


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _is_hub_like(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
