"""Tools of MCP servers (the Model Context Protocol), called like those of the project."""
