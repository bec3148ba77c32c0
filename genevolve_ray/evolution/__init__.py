"""The evolution loop, its state and the run store, written against protocols; no ray."""
