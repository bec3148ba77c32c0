"""The agent: protocol profiles, the parser of policy turns, the chat template's tokens, and the episode loop."""
