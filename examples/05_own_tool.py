"""Example 5: a tool of your own, behind the Model Context Protocol (MCP).

You learn: `tools.mcp.servers` names tool servers, as programs or by address. A run starts them, shows their tools to the
policy beside its own, and calls them within limits of time and size. examples/own_parts/notes_server.py is a server with
one tool. This program does what a run does: it reads the YAML file, starts the server, prints what the policy reads, and
calls the tool, once well and once badly. A few seconds; the policy of the embedded world has not learned to call it.

    .venv/bin/python examples/05_own_tool.py
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from genevolve_ray.config import load_config
from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import TextObservation
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.tools.protocol import EpisodeContext
from genevolve_ray.tools.running import close_toolbox, running_tools

PARTS = Path(__file__).parent / "own_parts"


async def main() -> None:
    """Start the tools of a configuration and call one of them."""
    # The YAML names the program `python`; here it is the interpreter of this example.
    command = json.dumps([sys.executable, str(PARTS / "notes_server.py")])
    config = load_config(str(PARTS / "notes.yaml"), [f"tools.mcp.servers.notes.command={command}"])
    images = MemoryImages()
    toolbox = config.tools.build(images)
    try:
        # As in a run: arguments are checked against the schema before a call.
        tools = running_tools(toolbox.tools, config.protocol.observations, images)
        print("The policy may call:", ", ".join(tools))
        tool = tools["notes_palette"]
        print(f"{tool.name}: {tool.description}\n{json.dumps(tool.parameters, indent=2)}")
        episode = EpisodeContext(request=Request(id="1", prompt="A harbor at dusk.", eval_type=EvalType.QUALITY))
        seen = await tool.call({"mood": "dusk"}, episode)
        if isinstance(seen, TextObservation):
            print("It reads:", seen.text)
        try:
            await tool.call({"feeling": "dusk"}, episode)
        except ToolArgumentError as error:
            print("Bad arguments are an observation as well:", error)
    finally:
        await close_toolbox(toolbox)


if __name__ == "__main__":
    asyncio.run(main())
