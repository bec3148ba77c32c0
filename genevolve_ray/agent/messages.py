"""The runtime's messages to the policy: what it reads after a turn that cannot be carried out, and before the last one."""

from __future__ import annotations

from genevolve_ray.records.base import Config


class Messages(Config):
    """Hold the runtime's messages to the policy; a known field in braces is filled in, other braces stay."""

    format_error: str = (
        "Format error: {detail}. Nothing was carried out. Think inside <think></think>, then write exactly one "
        "<tool_call>{...}</tool_call> or one <answer>{...}</answer>, and nothing after it."
    )
    """Answer to a turn without an action that can be read; field `detail`."""
    too_long: str = (
        "Too long: the turn was cut off after {limit} tokens and nothing was carried out. "
        "Think briefly and give one action."
    )
    """Answer to a turn that the token limit cut off; field `limit`."""
    bad_arguments: str = "Bad arguments for {name}: {detail}"
    """Answer to a call with arguments that its tool does not take; fields `name` and `detail`."""
    unknown_tool: str = "There is no tool named {name}. The tools are: {names}."
    """Answer to a call of a tool that does not exist; fields `name` and `names`."""
    unknown_skill: str = ""
    """Answer to a query for a skill that does not exist, fields `name` and `names`; empty: that of bad arguments."""
    no_queries: str = "[search] empty queries"
    """Observation of a text search without queries, where `answers` is `published`."""
    blank_queries: str = "[search] no results"
    """Observation of a text search whose queries are all blank, where `answers` is `published`."""
    outage: str = ""
    """Reason that is shown for a query which the source could not answer; empty: the tool's own."""
    tool_limit: str = "Not carried out: all {limit} tool calls are used. Give the <answer> from what you have."
    """Answer to a call beyond the limit, or in the last turn; field `limit`."""
    final_step: str = "Final step: tools are closed now. Reply with the <answer> and nothing else."
    """Announcement of the last turn."""


SHORT_MESSAGES = Messages(
    format_error="format error",
    too_long="too long",
    bad_arguments="bad arguments",
    unknown_tool="unknown tool",
    tool_limit="no calls left",
    final_step="final step",
)
