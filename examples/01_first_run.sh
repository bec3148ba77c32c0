#!/usr/bin/env bash
# Example 1: a first run. Two evolution steps of the embedded world in one process, then a report.
#
# You learn: a run is one command and one folder. No Ray, no vLLM, no GPU, no network: `--in-process` runs the same loop
# as a cluster, and engine.kind=transformers starts faster than the default. About half a minute.
#
#   make setup && examples/01_first_run.sh [RUN_DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v genevolve >/dev/null || PATH="$PWD/.venv/bin:$PATH"
run=${1:-runs/examples/first}

# 1. What this machine can do, and what it lacks.
genevolve doctor

# 2. Two steps: 3 requests with 4 attempts each, judged, one update of the policy after each step.
genevolve evolve atlas --in-process --steps 2 --run "$run" \
    --set engine.kind=transformers --set loop.requests_per_step=3 --set loop.group_size=4 \
    --set loop.validation_requests=4 --set heldout.requests=8

# 3. The report, as one page without a server. `evolve` has written it; this writes it again.
genevolve report "$run"

echo "See $run: report.html, the resolved configuration, metrics.jsonl, trajectories as Parquet, images by hash."
