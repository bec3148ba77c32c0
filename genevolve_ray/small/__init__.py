"""A small world of real parts: a pretrained policy, a diffusion pipeline, trained judges, facts and pictures.

Everything is run by the ordinary classes of the other packages. `genevolve small setup` writes the folders that the preset
`small` names (`small.setup`).
"""
