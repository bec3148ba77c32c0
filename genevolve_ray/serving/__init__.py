"""Renderers and chat models behind HTTP: the `/generate` contract and the chat contract, with tokens and bounds."""
