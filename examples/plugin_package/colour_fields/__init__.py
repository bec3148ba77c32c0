"""Plug-ins for genevolve_ray: a renderer that paints colour fields, and tools over a folder of pictures."""
