#!/usr/bin/env bash
# Example 7: stop, resume, and look at what a run has kept.
#
# You learn: a step counts once its manifest is written. The same command resumes a run at the first step that does not
# count, after Ctrl-C, a kill or a lost machine. Everything is on disk: experience, rollouts, checkpoints. `view` shows all
# of it in the browser, also while a run goes. About a minute.
#
#   examples/07_resume_and_report.sh [RUN_DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v genevolve >/dev/null || PATH="$PWD/.venv/bin:$PATH"
run=${1:-runs/examples/resumed}

evolve() {
    genevolve evolve atlas --in-process --run "$run" --steps "$1" --set engine.kind=transformers \
        --set loop.requests_per_step=2 --set loop.group_size=4 --set loop.validate_every=0 --set heldout.requests=4
}

# 1. One step. --steps is the length of the run, not of the call.
evolve 1

# 2. The same command with a longer run: it resumes after step 1, with the same weights, memory and requests.
evolve 3

# 3. What the run learned: bundles of advice from the best and the worst attempt at a request.
genevolve experience ls "$run"

# 4. The policy as a folder for transformers, vLLM or `--policy`, with a model card.
genevolve export "$run" --out "$run/exported"

# 5. The report: curves, pictures before and after, and the groups of every step.
genevolve report "$run"

# 6. Every group and trajectory as pages that open without a server. Without --static, `genevolve view` serves the same pages
#    and follows a run that is in progress; `genevolve view FOLDER` with a folder of runs shows all of them.
genevolve view "$run" --static "$run-pages"

echo "Open $run/report.html and $run-pages/index.html, or start the live viewer: genevolve view $run --open"
