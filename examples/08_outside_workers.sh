#!/usr/bin/env bash
# Example 8: rollouts from a machine outside the cluster, through the gateway.
#
# You learn: a gateway leases samples to workers that know a token. A worker loads the weights, samples, and sends back
# token ledgers; it never sees the truth or the reward. The gateway replays and re-scores what it receives. Here both
# are on this machine, over the loopback. About half a minute.
#
#   examples/08_outside_workers.sh [RUN_DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v genevolve >/dev/null || PATH="$PWD/.venv/bin:$PATH"
run=${1:-runs/examples/outside}
port=${2:-8470}
tokens=${run}_tokens.json
mkdir -p "$(dirname "$tokens")"
rm -f "$tokens"

# 1. A token for one worker. It is printed once; the file keeps a hash.
token=$(genevolve gateway token new laptop --file "$tokens")

# 2. A run whose rollouts all come from outside; it waits for a worker.
genevolve gateway serve atlas --run "$run" --port "$port" --set gateway.tokens="$tokens" \
    --set loop.steps=1 --set loop.requests_per_step=2 --set loop.group_size=2 --set loop.validate_every=0 \
    --set heldout.requests=2 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

# 3. The worker: on another machine, with https and the same command. It ends when the run has ended.
GENEVOLVE_TOKEN=$token genevolve worker --gateway "http://127.0.0.1:$port" --engine transformers --folder "${run}_worker"

wait "$server"
trap - EXIT
echo "Every rollout in $run came through the gateway."
