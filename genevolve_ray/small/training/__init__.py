"""The training of the small parts from nothing: the renderer and the image tower of the alignment judge."""
