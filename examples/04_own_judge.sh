#!/usr/bin/env bash
# Example 4: a judge of your own, and a reward from named components.
#
# You learn: several judges score one picture. Each gives named components in a range, and `reward.components` weighs
# them. examples/own_parts/warmth.py is the judge, examples/own_parts/warmth.yaml mixes it with that of the embedded
# world. Stored pictures can be judged again later, by another judge or with other weights. About half a minute.
#
#   examples/04_own_judge.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v genevolve >/dev/null || PATH="$PWD/.venv/bin:$PATH"
out=${1:-runs/examples/judge}

# 1. The contract of judges: components within their ranges, a broken picture is no verdict.
(cd examples/own_parts && genevolve plugins check judge warmth:Warmth)

# 2. Two steps. The reward is 0.4 x KScore + 0.4 x sufficiency of the program + 0.2 x warmth of the picture.
genevolve evolve examples/own_parts/warmth.yaml --in-process --run "$out/run"

# 3. The held-out pictures again, judged once more by both judges: a deterministic judge agrees with itself.
genevolve rescore "$out/run" --output "$out/again"

echo "See $out/run/report.html for each component, and $out/again/rescore.json for the agreement."
