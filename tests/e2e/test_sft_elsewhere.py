"""The documented training of the same rows in TRL runs, on the tokens and with the loss of `genevolve sft`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from published_helpers import sft_row, write_lines

from genevolve_ray.agent.chat import load_tokenizer
from genevolve_ray.data.sft_rows import RowEncoder
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.sft import evaluate_sft
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.trajectories import read_sft

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def snippet() -> str:
    """Return the program in the documentation."""
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    (found,) = re.findall(r"```python\n(from datasets.*?)```", page, re.DOTALL)
    return str(found)


def test_the_documented_training_in_trl_runs_on_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    from tiny_qwen3 import build_model, build_tokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    build_model(Path("MODEL_DIR"), seed=0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = MARKED
    tokenizer.save_pretrained("MODEL_DIR")
    rows = write_lines(tmp_path / "train.jsonl", [sft_row(i) for i in range(4)])
    write_lines(tmp_path / "eval.jsonl", [sft_row(9)])
    names: dict[str, object] = {}
    exec(snippet().replace("bf16=True", "bf16=False, use_cpu=True, logging_steps=1"), names)
    load_policy(tmp_path / "policy")
    theirs = [(row["input_ids"], row["labels"]) for row in names["trainer"].train_dataset]  # type: ignore[attr-defined]
    report = RejectionReport()
    encoder = RowEncoder(load_tokenizer(Path("MODEL_DIR")))
    examples = [row.example() for row in encoder.encode_all(read_sft([rows], report), report)]
    first = names["trainer"].state.log_history[0]  # type: ignore[attr-defined]
    assert first["loss"] == pytest.approx(evaluate_sft(load_policy("MODEL_DIR"), examples).loss, rel=1e-5)
    for example, (ids, labels) in zip(examples, theirs, strict=True):
        trained = [token if ours else -100 for token, ours in zip(example.tokens, example.mask, strict=True)]
        assert labels[: len(trained)] == trained and set(labels[len(trained) :]) <= {-100}
        assert ids[: len(trained)] == list(example.tokens)
