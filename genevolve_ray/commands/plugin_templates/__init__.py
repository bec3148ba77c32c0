"""One small, working plug-in for each role: `genevolve plugins new` copies them, and docs/plugins.md shows them."""
