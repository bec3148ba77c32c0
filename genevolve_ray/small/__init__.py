"""The world `small`: real parts of a size that a laptop can run (docs/small.md)."""
