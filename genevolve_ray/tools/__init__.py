"""The agent's three tools: search, image_search, query_knowledge."""
