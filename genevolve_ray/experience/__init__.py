"""Experience: best-worst pairs, the memory of their lessons, and the text under which a lesson is retrieved."""
