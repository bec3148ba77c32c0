"""The building of a data set, stage by stage: pure functions over rows."""
