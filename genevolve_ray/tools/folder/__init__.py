"""Tools over a folder of one's own texts and pictures."""
