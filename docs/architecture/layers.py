"""Count packages, layers, imports between packages, upward imports and circles.

Run `python docs/architecture/layers.py` in a checkout. It measures that checkout, also one of an earlier commit.

- A package is a package or module directly below `genevolve_ray`.
- An import counts once for each pair of packages.
- The layers are the modules of the longest chain of imports.
- An upward import must be cut before there are layers: `grimp` names the fewest.
- A circle is a group of modules that import each other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
from grimp import ImportGraph

PACKAGE = "genevolve_ray"


def circles(graph: ImportGraph) -> list[list[str]]:
    """Return the groups of modules of which each reaches each."""
    found: set[frozenset[str]] = set()
    for module in graph.modules:
        both = graph.find_upstream_modules(module) & graph.find_downstream_modules(module)
        if both - {module}:
            found.add(frozenset({*both, module}))
    return sorted(sorted(group) for group in found)


def layers(imports: dict[str, set[str]]) -> int:
    """Return the length of the longest chain. The imports must hold no circle."""
    heights: dict[str, int] = {}

    def height(package: str) -> int:
        if package not in heights:
            heights[package] = 1 + max(map(height, imports[package]), default=0)
        return heights[package]

    return max(map(height, imports))


def main() -> None:
    """Print the figures of the checkout in the working directory."""
    sys.path.insert(0, str(Path.cwd()))
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    groups = circles(graph)
    upward = {(_package(a), _package(b)) for a, b in graph.nominate_cycle_breakers(PACKAGE)}
    packages = graph.find_children(PACKAGE)
    for package in packages:
        graph.squash_module(package)
    imports = {p: (graph.find_modules_directly_imported_by(p) & packages) - {p} for p in packages}
    count = sum(map(len, imports.values()))
    for above, below in upward:
        imports[above].discard(below)
    print(
        f"{len(packages)} packages, {layers(imports)} layers, {count} imports, {len(upward)} upward, {len(groups)} circles"
    )
    for above, below in sorted(upward):
        print(f"  upward: {above} -> {below}")
    for group in groups:
        print(f"  circle: {', '.join(group)}")


def _package(module: str) -> str:
    return ".".join(module.split(".")[:2])


if __name__ == "__main__":
    main()
