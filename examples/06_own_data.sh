#!/usr/bin/env bash
# Example 6: a data set of your own, from recipes to a fine-tuned policy.
#
# You learn: `data build` draws recipes, writes prompts, lets a teacher play them, audits and filters the result, and
# splits it without leaks. Here all of these parts are those of the embedded world; a build of your own names endpoints.
# The output has the published formats, so `sft` and runs read it. About a minute.
#
#   examples/06_own_data.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v genevolve >/dev/null || PATH="$PWD/.venv/bin:$PATH"
out=${1:-runs/examples/data}

# 1. The build. Ended early, the same command resumes it.
genevolve data build atlas --recipes 30 --out "$out/build" --in-process

# 2. Look at it: yields of every stage, rejected rows with reasons, and a page with pictures.
genevolve data leaks "$out/build/dataset/sft/train.jsonl" --against "$out/build/dataset/bench/test.jsonl"

# 3. Fine-tune on its conversations: two steps at most, a whole training without --steps.
genevolve sft "$out/build/dataset/sft/train.jsonl" --model genevolve_ray.atlas:cold_start --out "$out/policy" --steps 2

echo "Open $out/build/dataset/index.html; $out/policy is a model folder, for example for policy.model of a run."
