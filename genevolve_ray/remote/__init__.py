"""Services over HTTP: one client with bounded retries, balancing, limits, prices."""
