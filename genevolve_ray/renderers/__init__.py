"""Generators: a program and its reference pictures in, a picture out."""
