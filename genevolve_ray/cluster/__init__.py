"""The evolution protocols as Ray actors and Serve applications; the only package that imports ray."""
