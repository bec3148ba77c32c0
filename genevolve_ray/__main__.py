"""`python -m genevolve_ray`: the command line, for interpreters without the script."""

from genevolve_ray.cli import main

main()
