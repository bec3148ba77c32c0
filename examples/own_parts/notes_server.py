"""A tool server over stdio with one tool: the colors of a mood. It uses the MCP SDK (the extra `mcp`)."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

PALETTES = {"dawn": "rose, gold, pale blue", "dusk": "indigo, rose, amber", "storm": "slate, green, white"}

server = MCPServer("notes")


@server.tool()
def palette(mood: str) -> str:
    """Return the colors of a mood: dawn, dusk or storm."""
    return f"{mood}: {PALETTES.get(mood, 'no palette is known')}"


if __name__ == "__main__":
    server.run()
