"""Plug-ins for genevolve_ray: a renderer of color fields, and tools over a folder of images."""
