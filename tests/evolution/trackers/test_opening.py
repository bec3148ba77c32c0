"""The configured trackers of a run: what they need is checked before it starts, what they show is read from its store."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tracker_fakes import RUN

from genevolve_ray.config import load_config
from genevolve_ray.doctor import parts
from genevolve_ray.doctor.machine import Status
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.trackers import opening
from genevolve_ray.evolution.trackers.opening import CommittedSteps, check_trackers, open_trackers
from genevolve_ray.evolution.trackers.pictures import TEXT
from genevolve_ray.evolution.trackers.port import LoggingConfig, TrackerError, scalars
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Termination, Trajectory
from genevolve_ray.records.verdict import ImageScores, Reward, ScoreFormula, Sufficiency, Verdict


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(str(tmp_path / "run"), {"seed": 1}) as opened:
        yield opened


def picture(side: int, color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, format="PNG")
    return buffer.getvalue()


def judged(store: RunStore, sample: int, score: float) -> Trajectory:
    ledger = TokenLedger()
    ledger.append_context([1], SpanKind.PROMPT)
    ledger.append_policy([2], [-0.5], [0], SpanKind.ANSWER)
    ones = Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True)
    scores = ImageScores(faithfulness=1, visual_correctness=1, aesthetics=1)
    return Trajectory(
        SampleKey(step=1, request_id="r", sample=sample),
        "draw a heron " * 100,
        ledger,
        Provenance(profile="release", engine="fake"),
        outcome=Outcome.SCORED,
        termination=Termination.ANSWER,
        rendered=store.images.put(picture(600, ("red", "green", "blue")[sample]), width=600, height=600),
        verdict=Verdict(image=scores, text=ones, rationale=f"reason {sample}", judge="j", formula=ScoreFormula.PAPER),
        reward=Reward(total=score, image=score, text=score),
    )


def commit(store: RunStore, loop: dict[str, object] | None = None) -> None:
    group = Group("r", 1, [judged(store, 0, 0.5), judged(store, 1, 0.125), judged(store, 2, 0.75)])
    store.put_group(group, 0)
    truth = store.images.put(picture(8, "white"), width=8, height=8)
    state = {"truths": {"r": truth.model_dump(mode="json")}} | (loop or {})
    store.commit_step(1, [group], {"reward_mean": 0.5}, "hash", {"reward_mean": 0.25}, loop=state)


def test_a_table_has_best_worst_and_truth_as_small_pictures(store: RunStore) -> None:
    commit(store)
    [row] = CommittedSteps(store, LoggingConfig(pictures_every=1, picture_side=64)).pictures(1)
    assert (row.best_reward, row.worst_reward) == (0.75, 0.125)
    assert row.best is not None and row.worst is not None and row.truth is not None
    shown = [Image.open(io.BytesIO(png)) for png in (row.best, row.worst, row.truth)]
    assert [image.size for image in shown] == [(64, 64), (64, 64), (8, 8)]
    assert [image.getpixel((0, 0)) for image in shown] == [(0, 0, 255), (0, 128, 0), (255, 255, 255)]
    assert row.rationale == "best: reason 2 worst: reason 1"
    assert len(row.request) == TEXT + 1


def test_a_missing_picture_leaves_its_place_empty(store: RunStore) -> None:
    commit(store)
    for path in Path(store.root, "images").rglob("*.png"):
        path.unlink()
    [row] = CommittedSteps(store, LoggingConfig(pictures_every=1)).pictures(1)
    assert (row.best, row.worst, row.truth, row.best_reward) == (None, None, None, 0.75)


@pytest.mark.parametrize(("every", "rows"), [(0, 0), (1, 1), (10, 0)])
def test_tables_come_at_their_steps(store: RunStore, every: int, rows: int) -> None:
    commit(store)
    assert len(CommittedSteps(store, LoggingConfig(pictures_every=every)).pictures(1)) == rows


def test_metrics_include_the_validation_and_alerts_are_the_alarms_of_the_step(store: RunStore) -> None:
    commit(store, {"alarms": [{"name": "entropy", "text": "it falls"}]})
    steps = CommittedSteps(store, LoggingConfig())
    assert steps.metrics(1) == {"reward_mean": 0.5, "validation/reward_mean": 0.25}
    assert steps.alerts(1) == [("entropy", "it falls")]


def test_trackers_that_never_began_end_at_once(store: RunStore, tmp_path: Path) -> None:
    config = LoggingConfig(tensorboard=str(tmp_path / "logs"))
    with open_trackers(config, RUN, store, Folder(store.root), pytest.fail):
        pass
    assert not (tmp_path / "logs").exists()


def test_scalars_are_the_finite_numbers() -> None:
    metrics = {"loss": 1, "kl": 0.5, "nan": float("nan"), "none": None, "text": "x", "flag": True}
    assert scalars(metrics) == {"loss": 1.0, "kl": 0.5, "flag": 1.0}


@pytest.mark.parametrize(
    ("package", "key"),
    [
        ("tensorboard", "logging.tensorboard"),
        ("wandb", "logging.wandb_project"),
        ("mlflow", "logging.mlflow_experiment"),
        ("trackio", "logging.trackio_project"),
    ],
)
def test_a_missing_package_is_named_before_the_run_starts(
    monkeypatch: pytest.MonkeyPatch, package: str, key: str
) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    config = load_config("atlas", [f"{key}=here"])
    said = rf"{key} is set but {package} is not installed: pip install 'genevolve_ray\[{package}\]' or leave the key"
    with pytest.raises(TrackerError, match=said):
        check_trackers(config.logging)
    [check] = parts.trackers(config)
    assert (check.status, package in check.detail) == (Status.PROBLEM, True)


@pytest.fixture
def with_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An installed wandb, and a home without any sign-in."""
    monkeypatch.setattr(opening, "find_spec", lambda name: object())
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_online_needs_a_key(with_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online = LoggingConfig(wandb_project="p")
    with pytest.raises(TrackerError, match="WANDB_API_KEY is not: set it, or run `wandb login`"):
        check_trackers(online)
    check_trackers(LoggingConfig(wandb_project="p", wandb_mode="offline"))
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    check_trackers(online)


def test_a_key_of_wandb_login_counts(with_wandb: Path) -> None:
    with_wandb.write_text("machine api.wandb.ai login user password " + "x" * 40)
    check_trackers(LoggingConfig(wandb_project="p"))


def test_a_password_in_the_address_of_mlflow_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load_config("atlas", ["logging.mlflow_experiment=e", "logging.mlflow_uri=https://me:hidden-word@host"])
    assert "hidden-word" not in str(caught.value)


def test_no_tracker_is_no_finding() -> None:
    assert parts.trackers(load_config("atlas")) == []


def test_store_and_trackers_import_neither_torch_nor_ray_nor_a_tracker() -> None:
    code = (
        "import sys, genevolve_ray.evolution.trackers.opening;"
        "sys.exit(str({'torch', 'ray', 'vllm', 'wandb', 'mlflow', 'trackio', 'tensorboard'} & set(sys.modules) or ''))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
