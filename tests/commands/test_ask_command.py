"""`genevolve ask`: answers, files, exit codes, events, chats from standard input, and what it refuses."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played_bench import painter, write_config
from played_world import World, answer, playing, png, turn

from genevolve_ray.commands.ask import AskOptions, asked_config
from genevolve_ray.commands.inference import Common
from genevolve_ray.viewer.trajectory_page import write_trajectory_page

ROWS = ("--set", "requests.type=asked_plugins:Rows")


def ask(genevolve: Callable[..., Any], tmp_path: Path, world: World, *arguments: object) -> Any:
    """Ask with the services of a played world."""
    config = write_config(tmp_path / "my.yaml", world)
    policy = ("--policy", f"openai:played@{world.url}/v1")
    return genevolve("ask", "--config", config, *policy, *ROWS, *map(str, arguments))


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["transformers"])
def test_a_request_of_the_atlas_is_answered_from_nothing(genevolve: Callable[..., Any], away: Path, kind: str) -> None:
    ended = genevolve("ask", "Show Ulion, festive mood, in crayon.", "--seed", "1")
    assert ended.code == 0, ended.err
    assert f"sampled by {kind} on cpu" in ended.out
    for said in ("image_search  look of Ulion", "official picture of Ulion", "\nProgram\n", "\nVerdict\n", "reward 0."):
        assert said in ended.out
    assert "\x1b" not in ended.out
    (folder,) = (away / "runs/ask").iterdir()
    assert folder.name.endswith("-show-ulion-festive-mood-in-crayon")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "Ulion" in (folder / "trajectory.html").read_text()
    written = json.loads((folder / "answer.json").read_text())
    assert written["outcome"] == "scored" and written["references"][0]["title"].endswith("picture of Ulion")
    assert f"{folder.relative_to(away) / 'picture.png'}" in ended.out


def test_what_the_atlas_does_not_understand_is_explained_before_anything_starts(
    genevolve: Callable[..., Any], away: Path
) -> None:
    ended = genevolve("ask", "a cat on a skateboard")
    assert ended.code == 2
    assert "not understood: it names nothing that the atlas knows" in ended.out
    assert (
        "other subjects  lantern, mask" in ended.out and ended.out.count("   Show ") + ended.out.count("\nShow ") == 3
    )
    assert not (away / "runs").exists()
    (event,) = events_of(genevolve("ask", "a cat on a skateboard", "--json").out)
    assert (event["event"], event["exit_code"], len(event["suggestions"])) == ("not_understood", 2, 3)


def test_suggestions_are_requests_that_can_be_asked(genevolve: Callable[..., Any]) -> None:
    assert len(genevolve("ask", "--suggest").out.splitlines()) == 5
    three = genevolve("ask", "--suggest", "3").out.splitlines()
    assert len(genevolve("ask", "--suggest", "9" * 5000, *ROWS).out.splitlines()) == 50
    assert genevolve("ask", "--suggest", "²", *ROWS).code == 0
    assert len(three) == 3 and all(line.startswith("Show ") for line in three)
    assert all("tower" in line for line in genevolve("ask", "--suggest", "seven towers").out.splitlines())
    rows = genevolve("ask", "--suggest", "2", *ROWS).out.splitlines()
    assert rows == ["a heron, number 0", "a heron, number 1"]


def test_services_answer_and_a_judge_without_its_truth_is_not_asked(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "a heron at dawn", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (world.calls["render"], world.calls["judge"]) == (1, 0)
    assert "not judged by judge: it compares with a ground-truth picture, and this request has none" in ended.out
    assert "an endpoint" in ended.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "answer.json",
        "picture.png",
        "references",
        "trajectory.html",
    ]
    written = json.loads((tmp_path / "out/answer.json").read_text())
    assert (written["outcome"], written["reward"]) == ("pending", None)


def test_a_judge_without_need_of_a_truth_is_asked_all_the_same(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    judges = ("--set", "judges={free: {type: 'asked_plugins:FreeJudge'}}")
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "a heron", "--out", tmp_path / "out", *judges)
    assert ended.code == 0, ended.err
    assert "free.beauty  0.75" in ended.out and "not judged by judge" in ended.out


def test_a_truth_from_a_file_lets_the_judge_judge(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    truth = tmp_path / "truth.png"
    truth.write_bytes(png(3))
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "a heron", "--out", tmp_path / "out", "--truth", truth)
        assert ended.code == 0 and world.calls["judge"] == 1, ended.err
        truth.write_bytes(b"no picture")
        refused = ask(genevolve, tmp_path, world, "a heron", "--out", tmp_path / "out", "--truth", truth)
    assert "visual correctness  0.50" in ended.out and "not judged" not in ended.out
    assert refused.code == 2 and "--truth" in refused.err


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("judge={type: 'asked_plugins:FreeJudge', config: {}}",), "judge gives no KScore: set reward.components"),
        (
            (
                "judge={type: 'asked_plugins:FreeJudge', config: {}}",
                "judges={compared: {type: 'asked_plugins:GroupJudge'}}",
                "reward.components={beauty: 0.5, compared.rank: 0.5}",
            ),
            "reward.components: no judge has 'compared.rank'",
        ),
    ],
    ids=["plain reward", "judge of groups"],
)
def test_where_judges_give_no_reward_it_is_said_once_and_verdicts_stand_alone(
    settings: tuple[str, ...],
    why: str,
    genevolve: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a heron\na second heron"))
    options = [option for setting in settings for option in ("--set", setting)]
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "--chat", "--out", tmp_path / "out", *options)
    assert ended.code == 0, ended.err
    assert ended.out.count(f"no reward, each verdict stands alone: {why}") == 1
    assert ended.out.count("beauty  0.75") == 2 and "error" not in ended.out
    written = json.loads((tmp_path / "out/002-a-second-heron/answer.json").read_text())
    assert (written["outcome"], written["reward"]) == ("pending", None)
    assert written["components"]["judge.beauty"]["value"] == 0.75


def test_a_kscore_by_another_formula_than_the_reward_is_refused_before_any_call(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    options = ("--set", "judge={type: 'asked_plugins:OpenScore', config: {formula: release-eval}}")
    formula = ("--set", "reward.formula=release-summary")
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "a heron", *options, *formula)
    assert ended.code == 2 and "use one formula" in " ".join(ended.err.split()), ended.err
    assert not world.calls


def test_a_failure_of_the_policy_is_shown_as_one(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    with playing(World(script=lambda messages: answer() if len(messages) < 4 else "?")) as world:
        ended = ask(genevolve, tmp_path, world, "a heron", "--out", tmp_path / "out")
    assert ended.code == 1
    assert "no picture: the policy gave no usable program: " in ended.out
    assert (tmp_path / "out/trajectory.html").is_file() and not (tmp_path / "out/picture.png").exists()
    assert world.calls["render"] == 0


@pytest.mark.parametrize("service", ["chat", "render", "judge"])
def test_an_outage_of_a_service_is_named_and_temporary(
    service: str, genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    truth = tmp_path / "truth.png"
    truth.write_bytes(png(3))
    arguments = ("a heron", "--out", tmp_path / "out", "--truth", truth, "--json")
    with playing(World(script=painter, fault=lambda called, body: 503 if called == service else 0)) as world:
        policy = ("--policy", tmp_path / "policy.yaml")
        write_config(tmp_path / "my.yaml", world)
        ended = ask(genevolve, tmp_path, world, *arguments, *policy)
    assert ended.code == 75, ended.out
    last = events_of(ended.out)[-1]
    assert (last["outcome"], last["exit_code"], last["reward"]) == ("infra_failure", 75, None)
    assert "503" in last["reason"]
    assert (last["picture"] is not None) == (service == "judge")
    assert (tmp_path / "out/trajectory.html").is_file()


def test_an_outage_of_a_tool_ends_the_episode(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    tools = ("--set", "tools={type: 'asked_plugins:Tools', config: {fails: true}}")
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "a heron", "--out", tmp_path / "out", *tools)
    assert ended.code == 75
    assert "a service failed, which is no fault of the policy: image_search: image_search gave up" in ended.out


def test_control_sequences_of_tools_judges_and_policy_are_only_text(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    def hostile(messages: list[dict[str, str]]) -> str:
        if len(messages) < 4:
            return turn("image_search", query="\x1b]0;query\x07").replace("so", "\x1b[2Jthought")
        return answer("a heron like the first reference image \x1b[5m")

    options = ("--set", "tools.type=asked_plugins:Tools", "--set", "judges={free: {type: 'asked_plugins:FreeJudge'}}")
    with playing(World(script=hostile)) as world:
        ended = ask(genevolve, tmp_path, world, "a heron \x1b[31m", "--out", tmp_path / "out", *options)
    assert ended.code == 0, ended.err
    assert all(c.isprintable() or c == "\n" for c in ended.out + ended.err)
    assert "<script>alert(1)</script>" in ended.out and "owned" not in ended.out
    page = (tmp_path / "out/trajectory.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page


def test_events_tell_the_story_in_order(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "a heron", "--out", tmp_path / "out", "--json")
    told = events_of(ended.out)
    assert [event["event"] for event in told] == [
        *("opened", "request", "turn", "sampled", "observation", "turn_ended"),
        *("turn", "sampled", "turn_ended", "program", "picture", "answer"),
    ]
    assert told[4]["tool"] == "image_search" and list(told[4]["images"]) == ["IMG_001"]
    assert told[-1]["picture"] == str(tmp_path / "out/picture.png")


def test_a_chat_from_standard_input_outlives_failed_requests(
    genevolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "a heron",
        "",
        "???",
        ":seed 7",
        ":seed x",
        ":nothing",
        ":suggest 2",
        ":suggest ²",
        ":help",
        "a broken heron",
        "a heron",
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))

    def moody(messages: list[dict[str, str]]) -> str:
        return "nonsense" if "broken" in messages[1]["content"] else painter(messages)

    with playing(World(script=moody)) as world:
        ended = ask(genevolve, tmp_path, world, "--chat", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "ask> " not in ended.out
    for said in ("the request is empty", "seed 7", "a seed is a number from 0, got 'x'", "no such command", ":quit"):
        assert said in ended.out
    assert "a heron, number 1" in ended.out and "no picture: the policy gave no usable program" in ended.out
    assert ended.out.count("ready after") == 1
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["001-a-heron", "002-a-broken-heron", "003-a-heron"]
    seeds = [json.loads((tmp_path / "out" / f / "answer.json").read_text())["provenance"]["seed"] for f in folders]
    assert len(set(seeds)) == 3 and (tmp_path / "out/003-a-heron/picture.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a request, --chat or --suggest"),
        (("a heron", "--chat"), "--chat"),
        (("a heron", "--policy", "direct"), "has no agent to ask"),
        (("a heron", "--pictures", "ascii"), "--pictures 'ascii' is unknown; valid: auto, none, blocks, kitty, iterm"),
        (("  ",), "the request is empty"),
        (("a heron", "--policy", "nowhere"), "nowhere"),
        (("a heron", "--set", "renderer.runtime_env={pip: [x]}"), "renderer.runtime_env needs processes of its own"),
        (("a heron", "--out", "used"), "holds files that `genevolve ask` did not write"),
    ],
)
def test_bad_input_is_refused_with_its_name(
    genevolve: Callable[..., Any], away: Path, arguments: tuple[str, ...], said: str
) -> None:
    (away / "used").mkdir()
    (away / "used/mine.txt").write_text("x")
    ended = genevolve("ask", *ROWS, *arguments)
    assert ended.code == 2 and said in " ".join(ended.err.replace("│", " ").split()), ended.err
    assert not (away / "runs").exists()


def test_the_same_folder_takes_the_answer_again(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    with playing(World(script=painter)) as world:
        codes = [ask(genevolve, tmp_path, world, "a heron", "--out", tmp_path / "out").code for _ in range(2)]
    assert codes == [0, 0]


def test_a_disk_that_is_full_ends_a_request_but_not_the_chat(
    genevolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [OSError(errno.ENOSPC, "No space left on device")]

    def write(*arguments: Any, **options: Any) -> Path:
        if full:
            raise full.pop()
        return write_trajectory_page(*arguments, **options)

    monkeypatch.setattr("genevolve_ray.commands.ask_session.write_trajectory_page", write)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a heron\na heron"))
    with playing(World(script=painter)) as world:
        ended = ask(genevolve, tmp_path, world, "--chat", "--json", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    last = [event for event in events_of(ended.out) if event["event"] in ("error", "answer")]
    assert [event["event"] for event in last] == ["error", "answer"] and "No space left" in last[0]["message"]


@pytest.mark.parametrize("asking", [False, True], ids=["between requests", "in a request"])
def test_a_signal_ends_a_chat_that_nobody_types(
    asking: bool, genevolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lines(io.StringIO):
        def readline(self, size: int | None = -1, /) -> str:
            if not asking:
                signal.raise_signal(signal.SIGINT)
            return super().readline()

    def script(messages: list[dict[str, str]]) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return painter(messages)

    monkeypatch.setattr(sys, "stdin", Lines("a heron\na second heron"))
    with playing(World(script=script)) as world:
        ended = ask(genevolve, tmp_path, world, "--chat", "--out", tmp_path / "out")
    assert ended.code == 130, ended.err
    assert world.calls["chat"] == int(asking)


def test_a_folder_keeps_no_file_of_an_earlier_answer(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with playing(World(script=painter)) as world:
        assert ask(genevolve, tmp_path, world, "a heron", "--out", out).code == 0
        (out / "notes.txt").write_text("mine")
        assert (out / "picture.png").is_file() and (out / "references/IMG_001.png").is_file()
        world.script = lambda messages: "nonsense"
        assert ask(genevolve, tmp_path, world, "a heron", "--out", out).code == 1
    assert sorted(path.name for path in out.rglob("*.*")) == ["answer.json", "notes.txt", "trajectory.html"]


@pytest.mark.parametrize(
    ("arguments", "named"), [(("--policy", "nowhere"), "nowhere"), (("--truth", "absent.png"), "absent.png")]
)
def test_errors_before_the_start_are_events_as_well(
    arguments: tuple[str, ...], named: str, genevolve: Callable[..., Any], away: Path
) -> None:
    ended = genevolve("ask", "a heron", *ROWS, *arguments, "--json")
    (event,) = events_of(ended.out)
    assert (event["event"], event["exit_code"], ended.code) == ("error", 2, 2) and named in event["message"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_goes_away_ends_the_command_with_the_code_of_a_closed_pipe(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    with playing(World(script=painter)) as world:
        config = write_config(tmp_path / "my.yaml", world)
        services = (
            "--config",
            str(config),
            "--policy",
            f"openai:played@{world.url}/v1",
            "--out",
            str(tmp_path / "out"),
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "genevolve_ray", "ask", "a heron", *ROWS, *services, *options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 141, said
    assert said.count("\n") == 1 and "standard output was closed" in said


def test_an_engine_that_a_file_or_an_option_names_is_kept(tmp_path: Path) -> None:
    def kind(text: str, *settings: str) -> str:
        (tmp_path / "my.yaml").write_text(text)
        common = Common(config=str(tmp_path / "my.yaml"), settings=settings)
        return asked_config(AskOptions(common)).engine.kind

    assert asked_config(AskOptions(Common())).engine.kind == "transformers"
    assert kind("extends: atlas\nengine: {max_model_len: 4096}") == "transformers"
    assert kind("extends: atlas", "engine.max_model_len=4096") == "transformers"
    assert kind("extends: atlas\nengine: {kind: vllm}") == "vllm"
    assert kind("extends: atlas", "engine.kind=vllm") == "vllm"
