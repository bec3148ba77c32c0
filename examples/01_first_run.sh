#!/usr/bin/env bash
# Example 1: two evolution steps of the embedded world in one process, then a report.
#
# No Ray, no vLLM, no GPU, no network: `--in-process` runs the same loop as a cluster, with the transformers engine.
# A second call resumes the run where it stopped: --steps is the length of the run, not of this call.
#
#   make setup && examples/01_first_run.sh [RUN_DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run_dir=${1:-runs/first}
genevolve=.venv/bin/genevolve

"$genevolve" doctor
"$genevolve" evolve atlas --in-process --steps 2 --run "$run_dir"
"$genevolve" report "$run_dir"

echo "See $run_dir for the resolved configuration, metrics as JSONL, trajectories as Parquet, and images by hash."
