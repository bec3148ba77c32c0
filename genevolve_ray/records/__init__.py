"""Data records of the system: plain, validated types that import neither torch nor ray."""
