#!/usr/bin/env bash
# Example 1, the first run: two evolution steps of the embedded world in one process, then its report.
#
# No Ray, no vLLM, no GPU, no network: `--in-process` runs the same loop as a cluster would, with the transformers engine.
# Run it again and it continues where the run stopped: --steps is the length of the run, not of this call.
#
#   make setup && examples/01_first_run.sh [RUN_DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run_dir=${1:-runs/first}
genevolve=.venv/bin/genevolve

"$genevolve" doctor
"$genevolve" evolve atlas --in-process --steps 2 --run "$run_dir"
"$genevolve" report "$run_dir"

echo "Look into $run_dir: the resolved configuration, metrics as JSONL, trajectories as Parquet, pictures by hash."
