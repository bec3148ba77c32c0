"""What flows through the system: plain, validated records that import neither torch nor ray."""
