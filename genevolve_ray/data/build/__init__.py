"""Stages that build a data set: pure functions over the rows of `rows`, one module a stage."""
