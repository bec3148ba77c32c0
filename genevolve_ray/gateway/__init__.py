"""Rollouts from outside the cluster, over HTTP: the gateway inside, and workers anywhere."""
