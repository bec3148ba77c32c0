"""Engines that sample tokens, vLLM (default) and transformers (reference), behind one protocol; chat models."""
