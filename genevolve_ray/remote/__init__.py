"""Services over HTTP: one client with bounded retries, balancing, rate limits and prices."""

from genevolve_ray._moved import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Answer": "client",
        "PriceConfig": "config",
        "Remote": "client",
        "RemoteConfig": "config",
        "ServiceRefusal": "client",
        "Unusable": "client",
        "share_limits": "client",
    },
)
