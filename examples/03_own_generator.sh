#!/usr/bin/env bash
# Example 3: a generator of your own. A class of 40 lines draws the pictures of a run.
#
# You learn: a component is a class with a `Config`, found beside the YAML file that names it. Its contract is checked
# before a run. examples/own_parts/painter.py is the class; `genevolve plugins new renderer NAME` writes one like it with
# a test and a package. About half a minute.
#
#   examples/03_own_generator.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v genevolve >/dev/null || PATH="$PWD/.venv/bin:$PATH"
out=${1:-runs/examples/generator}

# 1. The contract of renderers: same seed, same bytes; bad references are refused; calls are independent.
(cd examples/own_parts && genevolve plugins check renderer painter:Stripes)

# 2. Two steps with it. The judge of the embedded world scores only that world's pictures, so the YAML names another
#    judge, which measures contrast and saturation.
genevolve evolve examples/own_parts/painter.yaml --in-process --run "$out"

echo "See the pictures in $out/report.html. Edit examples/own_parts/painter.py and name another folder."
