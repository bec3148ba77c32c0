"""Engines that sample tokens, chat models, and their settings."""
