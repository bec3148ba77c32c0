"""What a data build checks before its first call, and what its stages depend on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from build_services import BuildServices, write_build

from genevolve_ray.bench.jobs.settings_file import read_job
from genevolve_ray.commands.build_checks import check_build, policy_path, with_paths
from genevolve_ray.commands.build_config import BuildConfig, BuildStage, load_build
from genevolve_ray.commands.build_stages import BuildPlans
from genevolve_ray.data.build.overlaps import OverlapLimits
from genevolve_ray.data.build.split import PAPER_PARTS
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import PolicySource
from genevolve_ray.records.secrets import shown

AUDITOR = "genevolve_ray.data.build.endpoints:EndpointAuditor"
ENDPOINT = "{url: 'http://127.0.0.1:9/v1', model: m}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.truth_grader.config={capacit: 2}"], "capacit"),
        (["renderer.config={nothing: 1}"], "renderer.config.nothing"),
        (["data.auditor={type: 'nowhere:Auditor'}"], "nowhere:Auditor"),
        ([f"data.auditor={{type: '{AUDITOR}', config: {{endpoint: {{url: x, model: m}}}}}}"], "http or https"),
        (
            [f"data.auditor={{type: '{AUDITOR}', config: {{rubric: lost, endpoint: {ENDPOINT}}}}}"],
            "data.auditor.config.rubric: rubric 'lost'",
        ),
        (
            [f"data.auditor={{type: '{AUDITOR}', config: {{endpoint: {ENDPOINT[:-1]}, token_env: NO_SUCH_TOKEN}}}}}}"],
            "NO_SUCH_TOKEN (data.auditor.config.endpoint.token_env)",
        ),
        (
            [f"data.auditor={{type: '{AUDITOR}', config: {{endpoint: {ENDPOINT[:-1]}, token_env: '${{NO_SUCH}}'}}}}}}"],
            "NO_SUCH",
        ),
        (["data.writer.runtime_env={pip: [x]}"], "data.writer.runtime_env"),
        (["data.stages.audit.cap.money=5"], "data.stages.audit.cap.money=5: no service of this stage has a price"),
        (
            ["data.trajectory_parts.parts=[{name: sft/train, count: 50}]"],
            "the parts want 50 rows (sft/train 50), and there are 40 recipes",
        ),
        (["data.request_parts.limits={text_jaccard: 0.5}"], "differ"),
    ],
)
def test_a_fault_is_named_before_any_call(
    genevolve: Callable[..., Any], tmp_path: Path, settings: list[str], message: str
) -> None:
    sets = [word for setting in settings for word in ("--set", setting)]
    ended = genevolve("data", "build", "atlas", "--recipes", "40", "--out", tmp_path / "o", "--in-process", *sets)

    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "o" / "stages").exists()


def test_stages_after_the_last_one_are_not_checked(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    broken = ["--set", "data.truth_grader.config={capacit: 2}", "--until", "recipes"]
    ended = genevolve("data", "build", "atlas", "--recipes", "8", "--out", tmp_path / "o", "--in-process", *broken)

    assert ended.code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "direct"], "data.teacher answers in this build"),
        (["--policy", "direct", "--set", "data.teacher=null"], "--policy direct: a teacher plays whole trajectories"),
        (["--policy", "openai:nothing", "--set", "data.teacher=null"], "write openai:MODEL@URL"),
    ],
)
def test_a_policy_that_cannot_teach_is_refused(
    genevolve: Callable[..., Any], tmp_path: Path, more: list[str], message: str
) -> None:
    ended = genevolve("data", "build", "atlas", "--recipes", "8", "--out", tmp_path / "o", "--in-process", *more)

    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "o" / "stages").exists()


# --- a build over services, which are never called ---


def test_a_secret_in_plain_is_named_and_masked(written: Callable[..., BuildConfig], tmp_path: Path) -> None:
    told: list[str] = []
    config = written("data.writer.config.endpoint.extra_body={api_key: a-long-secret-of-mine}")
    check_build(config, tmp_path, str(tmp_path / "teacher.yaml"), BuildStage.CARD, in_process=True, say=told.append)

    assert len(told) == 1
    assert told[0].startswith("data.writer.config.endpoint.extra_body.api_key is a secret in plain")
    assert "a-long-secret-of-mine" not in shown("sent a-long-secret-of-mine")


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., BuildConfig]:
    """Load a build over services with some keys changed."""
    file, _ = write_build(tmp_path, BuildServices(url="http://127.0.0.1:9"), 40)
    return lambda *settings: load_build(str(file), settings)


def checked(config: BuildConfig, folder: Path, policy: Path, until: BuildStage = BuildStage.CARD) -> Any:
    return check_build(config, folder, str(policy), until, in_process=True, say=print)


def test_a_cap_of_money_with_a_price_is_taken(written: Callable[..., BuildConfig], tmp_path: Path) -> None:
    caps = [f"data.stages.{stage}.cap.money=5" for stage in ("prompts", "trajectories", "audit", "truths")]
    _, source = checked(written(*caps), tmp_path, tmp_path / "teacher.yaml")

    assert source.identity == "openai:teacher"


def test_a_cap_of_money_on_a_policy_without_a_price_is_refused(
    written: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    (tmp_path / "free.yaml").write_text("{url: 'http://127.0.0.1:9/v1', model: m}")
    with pytest.raises(
        UserFault, match=r"data\.stages\.trajectories\.cap\.money=5: .* in the settings of tools, policy"
    ):
        checked(written("data.stages.trajectories.cap.money=5"), tmp_path, tmp_path / "free.yaml")


def test_the_date_stays_that_of_the_first_day(written: Callable[..., BuildConfig], tmp_path: Path) -> None:
    config = written("profile.append_date=true")
    first, _ = checked(config, tmp_path, tmp_path / "teacher.yaml")
    assert first.date
    assert date.fromisoformat(read_job(tmp_path, "build")["date"])
    (tmp_path / "build.job.json").write_text('{"date": "2026-01-02"}')

    assert checked(config, tmp_path, tmp_path / "teacher.yaml")[0].date == "2026-01-02"


def test_a_profile_without_a_date_keeps_none(written: Callable[..., BuildConfig], tmp_path: Path) -> None:
    assert checked(written("date=2026-03-04"), tmp_path, tmp_path / "teacher.yaml")[0].date == ""
    assert not (tmp_path / "build.job.json").exists()


def digests(config: BuildConfig, source: PolicySource | None = None) -> list[str]:
    plans = BuildPlans(config, Path("."), None, source)
    return [plans.digest(stage) for stage in ("prompts", "trajectories", "audit", "truths")]


def same(one: list[str], other: list[str]) -> int:
    """Return how many of the first digests are equal."""
    return next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ("data.recipes=80", 4),
        ("data.entities.max_uses=7", 4),
        ("data.writer.config.endpoint.url=http://other:1/v1", 4),
        ("renderer.config.url=http://other:1", 4),
        ("data.stages.prompts.in_flight=3", 4),
        ("data.audit_thresholds.mean=1", 4),
        ("engine.max_concurrent=3", 4),
        ("seed=5", 0),
        ("data.writer.config.endpoint.model=other", 0),
        ("date=2026-01-02", 1),
        ("inference.temperature=0.3", 1),
        ("engine.dtype=bfloat16", 1),
        ("data.auditor.config.repairs=1", 2),
        ("renderer.config.width=512", 3),
    ],
)
def test_stages_begin_anew_where_a_setting_alters_what_they_do(
    written: Callable[..., BuildConfig], setting: str, kept: int
) -> None:
    local = PolicySource(identity="teacher:1", model=Path("teacher"))

    assert same(digests(written(), local), digests(written(setting), local)) == kept


def test_stages_begin_anew_with_another_policy(written: Callable[..., BuildConfig], tmp_path: Path) -> None:
    config = written()
    one = PolicySource(identity="teacher:1", model=Path("teacher"))
    assert same(digests(config, one), digests(config, one.model_copy(update={"identity": "teacher:2"}))) == 1

    _, called = checked(config, tmp_path, tmp_path / "teacher.yaml")
    endpoint = called.endpoint
    for change, kept in (({"url": "http://other:1/v1"}, 4), ({"model": "other"}, 1), ({"send_top_p": False}, 1)):
        other = called.model_copy(update={"endpoint": endpoint.model_copy(update=change)})
        assert same(digests(config, called), digests(config, other)) == kept


def test_the_text_of_a_rubric_counts_and_not_its_name(written: Callable[..., BuildConfig], tmp_path: Path) -> None:
    for name, text in (("one.md", "Grade."), ("copy.md", "Grade."), ("other.md", "Grade well.")):
        (tmp_path / name).write_text(text)
    one, copy, other = (
        digests(written(f"data.auditor.config.rubric={tmp_path / name}")) for name in ("one.md", "copy.md", "other.md")
    )

    assert same(one, copy) == 4
    assert same(one, other) == 2


def test_relative_paths_are_absolute_before_workers_see_them(
    written: Callable[..., BuildConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.md").write_text("Grade.")
    (tmp_path / "my.yaml").write_text("name: x")
    config = with_paths(written("data.auditor.config.rubric=my.md", "data.taxonomy=my.yaml"))

    assert config.data.auditor.config["rubric"] == str(tmp_path / "my.md")
    assert config.data.taxonomy == str(tmp_path / "my.yaml")
    assert policy_path("teacher.yaml") == str(tmp_path / "teacher.yaml")
    assert policy_path("openai:m@http://127.0.0.1:9/v1") == "openai:m@http://127.0.0.1:9/v1"
    assert with_paths(written("data.auditor.config.rubric=audit")).data.auditor.config["rubric"] == "audit"
    assert with_paths(written()).data.taxonomy == "atlas"


def test_limits_can_be_set_alone_and_hold_for_all_parts(written: Callable[..., BuildConfig]) -> None:
    values = written().data.model_dump()
    values |= {"trajectory_parts": {"limits": {"text_jaccard": 0.5}}, "request_parts": {"seed": 3}}
    data = type(written().data).model_validate(values)

    assert data.trajectory_parts.parts == PAPER_PARTS[:2]
    assert data.request_parts.parts == PAPER_PARTS[2:]
    assert data.overlap_limits == OverlapLimits(text_jaccard=0.5)


def test_the_build_of_the_page_passes_all_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/data_build.md").read_text(encoding="utf-8")
    example = next(block for block in page.split("```yaml\n")[1:] if block.startswith("extends: paper"))
    teacher = next(block for block in page.split("```\n") if block.startswith("url:"))
    (tmp_path / "castles.yaml").write_text(example.partition("```")[0])
    (tmp_path / "teacher.yaml").write_text(teacher)
    for token in ("WRITER_TOKEN", "SERPER_API_KEY", "JINA_API_KEY"):
        monkeypatch.setenv(token, "x")
    blank = load_build(str(tmp_path / "castles.yaml"))
    with pytest.raises(UserFault, match=r"not filled in: .*experience\.embedder\.transformers\.model"):
        checked(blank, tmp_path, tmp_path / "teacher.yaml")
    checked(blank, tmp_path, tmp_path / "teacher.yaml", BuildStage.PROMPTS)
    filled = ("renderer.config.url=http://127.0.0.1:9", "experience.embedder.kind=hashing")
    config = load_build(str(tmp_path / "castles.yaml"), filled)
    _, source = checked(config, tmp_path, tmp_path / "teacher.yaml")

    assert source.endpoint.price.per_million_completion_tokens == 1.2
