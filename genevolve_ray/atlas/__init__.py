"""The embedded world: a seeded fictional atlas in which the real loop runs anywhere, offline, in minutes."""
