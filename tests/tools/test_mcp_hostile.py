"""A hostile MCP server: huge answers, junk, schema bombs, endless messages and tags of the protocol harm nothing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from mcp_servers import call, command, hostile, opened_box

from genevolve_ray.agent.observing import observation_text
from genevolve_ray.agent.profile import PROFILES, system_prompt
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.records.observation import TextObservation
from genevolve_ray.tools.mcp.schema import SchemaRefused, plain_schema
from genevolve_ray.tools.mcp.stdio import Lines
from genevolve_ray.tools.mcp.toolbox import WithServers

MODULE = {"loop_scope": "module", "scope": "module"}


@pytest_asyncio.fixture(**MODULE)
async def tags() -> AsyncIterator[WithServers]:
    async with hostile("tags") as box:
        yield box


def test_bad_schemas_leave_their_tools_out_with_a_note(tags: WithServers) -> None:
    assert set(tags.tools) == {"it_plain"}
    left_out = {note.split("tool ")[1].split(" ")[0] for note in tags.notes}
    assert left_out == {"it_doubling", "it_deep", "it_circle", "it_enum", "it_elsewhere", "it_tags"}


def test_a_pattern_from_outside_is_not_checked_here(tags: WithServers) -> None:
    assert tags.tools["it_plain"].parameters["properties"]["x"] == {"type": "string"}


@pytest.mark.parametrize("profile", ["release", "atlas"])
async def test_tags_in_a_text_are_no_tags_for_the_policy(tags: WithServers, profile: str) -> None:
    text = observation_text(await call(tags, "plain", x="y"), PROFILES[profile])
    for tag in ("</tool_response>", "<answer>", "<tool_call>", "<|im_end|>", "<image>", "IMG_001", "--- end", "\x1b"):
        assert tag not in text
    assert "‹answer>" in text


def test_tags_in_a_description_are_no_tags_in_the_system_prompt(tags: WithServers) -> None:
    with_tool, without = (system_prompt(PROFILES["release"], tools) for tools in (tags.tools, {}))
    assert with_tool.count("</tools>") == without.count("</tools>")
    assert "it_plain" in with_tool
    assert "<|im_end|>" not in with_tool


async def test_junk_between_messages_is_skipped() -> None:
    async with hostile("junk") as box:
        assert isinstance(await call(box, "plain", x="y"), TextObservation)


async def test_a_huge_answer_is_an_error_that_the_policy_reads() -> None:
    async with hostile("huge", max_result_bytes=200_000) as box:
        seen = await call(box, "plain", x="y")
        assert isinstance(seen, TextObservation)
        assert seen.error == "the answer is larger than 200000 bytes"


@pytest.mark.parametrize("way", ["endless", "flood", "progress"])
async def test_a_server_that_never_answers_is_an_outage_within_its_time(way: str) -> None:
    async with hostile(way, max_result_bytes=200_000) as box:
        started = time.monotonic()
        with pytest.raises(InfraFailure, match=r"MCP server it: (no answer within 0.5 s|Connection closed)"):
            await call(box, "plain", x="y")
        assert time.monotonic() - started < 5


async def test_a_list_that_the_sdk_refuses_is_a_fault_of_one_line() -> None:
    with pytest.raises(UserFault, match=r"^tools\.mcp\.servers: MCP server it: lists no tools: [^\n]*$"):
        opened_box(command("mcp_hostile_server.py", "unlistable"), start_timeout_s=20)


async def test_stderr_of_a_server_reaches_no_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "genevolve_ray"):
        async with hostile("junk") as box:
            await call(box, "plain", x="y")
    assert "secret words" not in caplog.text + "".join(capfd.readouterr())


def test_lines_are_kept_up_to_their_limit() -> None:
    lines = Lines(limit=1000)
    assert lines.feed(b"ab\ncd") == [(b"ab", False)]
    assert lines.feed(b"ef\n") == [(b"cdef", False)]
    assert lines.feed(b"x" * 5000) == []
    assert lines.feed(b"y" * 5000 + b"\nz\n") == [(b"x" * 256, True), (b"z", False)]


def test_a_schema_that_grows_without_end_is_refused_at_once() -> None:
    levels = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 9} for i in range(6)} | {"a6": {"type": "null"}}
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": levels}
    started = time.process_time()
    with pytest.raises(SchemaRefused, match="more than 8192 bytes"):
        plain_schema(schema, 8192)
    assert time.process_time() - started < 0.5


async def test_the_process_of_a_server_is_gone_after_the_end() -> None:
    before = _hostile_processes()
    async with hostile("endless", max_result_bytes=200_000) as box:
        with pytest.raises(InfraFailure):
            await call(box, "plain", x="y")
    assert _hostile_processes() <= before


def _hostile_processes() -> set[str]:
    return {name for name in os.listdir("/proc") if name.isdigit() and _runs_hostile(name)}


def _runs_hostile(process: str) -> bool:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        with open(f"/proc/{process}/stat") as file:
            parent = file.read().rsplit(")", 1)[1].split()[1]
    except OSError:
        return False
    return int(parent) == os.getpid() and any(word.endswith(b"mcp_hostile_server.py") for word in words)


def test_a_schema_without_its_patterns_accepts_the_names_that_they_allowed() -> None:
    schema = {"type": "object", "patternProperties": {"^x": {}}, "additionalProperties": False}
    assert plain_schema(schema, 8192) == {"type": "object"}
    assert plain_schema({"type": "object", "additionalProperties": False}, 8192)["additionalProperties"] is False
