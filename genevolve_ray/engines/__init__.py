"""What samples tokens: vLLM (default) and transformers (reference), behind one protocol."""
