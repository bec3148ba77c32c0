"""Judges: request, picture and program in, a verdict out."""
