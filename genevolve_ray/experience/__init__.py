"""Experience: best-worst pairs, the memory of what they taught, and the text under which it is found again."""
