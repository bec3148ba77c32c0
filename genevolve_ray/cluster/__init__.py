"""The only package that imports ray: the evolution protocols as actors and Serve applications."""
