"""`genevolve sft ROWS`: what a user sees, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.commands.sft import row_files, rows_config
from genevolve_ray.errors import UserFault


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    from published_helpers import sft_row, write_lines

    return write_lines(tmp_path / "rows.jsonl", [*(sft_row(i) for i in range(4)), b"{"])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny model that can be trained."""
    from agent_fakes import CHATML
    from tiny_qwen3 import build_model, build_tokenizer

    build_model(tmp_path / "tiny", seed=0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_training_says_what_it_read_and_how_it_went(
    genevolve: Callable[..., Any], tmp_path: Path, rows: Path, tiny: Path
) -> None:
    sets = [part for key in ("dtype=float32", "heldout_fraction=0.4", "global_batch=2") for part in ("--set", key)]
    options = ["--model", str(tiny), "--out", str(tmp_path / "out"), "--steps", "2", "--seed", "3", "--threads", "1"]
    code, out, _ = genevolve("sft", str(rows), *options, *sets)
    assert code == 0
    assert "5 rows, 4 kept, 1 rejected" in out
    assert "not_json: 1" in out
    assert "step 2/2 loss" in out
    assert "held-out loss after 2 steps" in out
    for name in ("config.json", "model.safetensors", "tokenizer.json", "rejections.json", "sft.json"):
        assert (tmp_path / "out" / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--model"),
        (["--model", "/no/such/model"], "--model: model folder does not exist: /no/such/model"),
        (["--model", "MODEL", "--set", "lr=fast"], "lr: "),
        (["--model", "MODEL", "--set", "rate=1"], "rate: unknown key (value 1)"),
        (["--model", "MODEL", "--set", "device=cuda"], "device=cuda: a GPU is asked for"),
        (["--model", "BARE"], "no tokenizer files"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    genevolve: Callable[..., Any], tmp_path: Path, rows: Path, model: Path, arguments: list[str], named: str
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    chosen = [{"MODEL": str(model), "BARE": str(bare)}.get(argument, argument) for argument in arguments]
    code, _, err = genevolve("sft", str(rows), "--out", str(tmp_path / "out"), *chosen)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert err.startswith("error: ") and named in err
    assert not (tmp_path / "out").exists()


def test_rows_that_are_missing_are_refused(genevolve: Callable[..., Any], tmp_path: Path, tiny: Path) -> None:
    code, _, err = genevolve("sft", str(tmp_path / "gone.jsonl"), "--model", str(tiny), "--out", str(tmp_path / "out"))
    assert code == 2
    assert err.splitlines()[-1] == f"error: {tmp_path / 'gone.jsonl'}: does not exist"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from fake_hub import fake_hub

    with fake_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield found


def test_rows_may_come_from_a_data_set_on_a_hub(
    genevolve: Callable[..., Any], tmp_path: Path, rows: Path, tiny: Path, hub: Any
) -> None:
    from published_helpers import sft_row

    hub.datasets["org/rows"] = {"train.jsonl": rows.read_bytes(), "eval.jsonl": json.dumps(sft_row(9)).encode()}
    sets = ("dtype=float32", "heldout_paths=[hf://datasets/org/rows/eval.jsonl]", "global_batch=2")
    options = [part for value in sets for part in ("--set", value)]
    code, out, _ = genevolve(
        "sft", "org/rows", "--model", tiny, "--out", tmp_path / "out", "--steps", "1", "--threads", "1", *options
    )
    assert code == 0
    assert "training on 4 rows for 1 steps, 1 rows held out" in out


def test_pictures_beside_the_rows_of_a_hub_are_named_until_they_are_in_the_cache(tmp_path: Path, hub: Any) -> None:
    from huggingface_hub import hf_hub_download
    from published_helpers import ANSWER, sft_row
    from seeing_rows import as_folder, pictured_rows

    rows, files = pictured_rows(2)
    written = as_folder(tmp_path / "rows", [sft_row(7, ANSWER), *rows], [[], *files])
    kept = {str(path.relative_to(tmp_path / "rows")): path.read_bytes() for path in written.parent.rglob("*.*")}
    hub.datasets["org/seen"] = kept
    seeing = rows_config(["images=vision"])
    with pytest.raises(UserFault, match=r"org/seen: line 2 of rows\.jsonl shows images/.*hf download ORG/NAME"):
        row_files("org/seen", seeing)
    assert len(row_files("org/seen", rows_config([]))) == 1, "to a policy that reads they do not matter"
    for name in rows[1]["images"]:
        hf_hub_download("org/seen", name, repo_type="dataset", endpoint=hub.url)
    [found] = row_files("org/seen", seeing)
    assert (found.parent / rows[1]["images"][0]).is_file()


def test_offline_a_data_set_is_one_line(genevolve: Callable[..., Any], tmp_path: Path, tiny: Path) -> None:
    code, _, err = genevolve("sft", "org/never-cached", "--model", tiny, "--out", tmp_path / "out")
    assert code == 2
    assert "error: org/never-cached: not in the cache, and HF_HUB_OFFLINE forbids downloads" in err.splitlines()[-1]


def test_a_model_that_ships_with_a_package_is_named_as_everywhere(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    assert genevolve("samples", tmp_path / "samples").code == 0
    rows = ("--model", "genevolve_ray.atlas:cold_start", "--out", tmp_path / "out", "--steps", "1", "--threads", "1")
    ended = genevolve("sft", tmp_path / "samples/sft.jsonl", *rows)
    assert ended.code == 0, ended.err
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["lines", "parquet"])
def test_rows_with_pictures_train_a_model_that_sees(genevolve: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    from seeing_rows import as_folder, as_parquet, pictured_rows
    from zoo import build

    from genevolve_ray.engines.transformers import TransformersEngine

    model, (rows, files) = build("qwen3-vl", tmp_path / "model"), pictured_rows(6)
    files[5][0] = b""
    file = (as_folder if kind == "lines" else as_parquet)(tmp_path / "rows", rows, files)
    settings = ("images=vision", "profile.observations.images=true", "profile.observations.max_side=128", "epochs=8")
    more = ("dtype=float32", "lr=3e-3", "global_batch=5", "heldout_fraction=0")
    sets = [part for value in (*settings, *more) for part in ("--set", value)]
    ended = genevolve("sft", file, "--model", model, "--out", tmp_path / "out", "--threads", "1", *sets)
    assert ended.code == 0, ended.err
    assert "6 rows, 5 kept, 1 rejected" in ended.out
    assert "unreadable_image: 1 (first: " in ended.out and ": an empty file)" in ended.out
    made = json.loads((tmp_path / "out/sft.json").read_text())
    assert made["loss"][-1] < 0.7 * made["loss"][0] and made["pictures"]["trained_on"] == 15
    assert (tmp_path / "out/preprocessor_config.json").is_file()
    TransformersEngine(tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["images=vision"], "images=vision, but the model does not see (config.json names no image token)"),
        (["tower=trained"], "tower=trained needs images=vision, got images=text"),
        (["images=pixels"], "images: "),
    ],
)
def test_pictures_that_cannot_be_trained_on_are_refused_in_one_line(
    genevolve: Callable[..., Any], tmp_path: Path, rows: Path, tiny: Path, settings: list[str], named: str
) -> None:
    sets = [part for value in settings for part in ("--set", value)]
    code, _, err = genevolve("sft", str(rows), "--model", tiny, "--out", tmp_path / "out", *sets)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ") and named in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_progress_without_a_terminal_is_a_line_every_ten_steps(capsys: pytest.CaptureFixture[str]) -> None:
    from genevolve_ray.commands.sft_screen import Screen
    from genevolve_ray.learning.sft import SftStep
    from genevolve_ray.records.published.rejections import RejectionReport

    with Screen() as screen:
        screen.start(RejectionReport(), train=1, heldout=0, steps=25)
        for step in range(25):
            sizes = {"tokens": 10, "target_tokens": 5, "distinct_tokens": 9, "row_tokens": 9}
            screen.step(SftStep(step, 1.0, 1.0, 1e-5, seconds=1.0, flops=3e12, **sizes))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in said] == ["10/25", "20/25", "25/25"]
    assert "10 tokens/s, model 3 TFLOP/s, padding 0.0%, shared 10.0%, 0:00:" in said[0]


@pytest.mark.parametrize("preset", ["atlas", "atlas-sight"])
@pytest.mark.parametrize("option", [("--set", "lr=1"), ("--model", "MODEL")])
def test_a_preset_takes_no_options_of_rows(genevolve: Callable[..., Any], preset: str, option: tuple[str, str]) -> None:
    code, _, error = genevolve("sft", preset, *option)
    assert code == 2
    assert f"genevolve sft {preset}: --model and --set are for rows" in error
