#!/usr/bin/env bash
# Example 2: requests of your own. A trained policy answers them, and a generator draws its answers.
#
# You learn: `ask` answers one request and shows every step of it. For many requests, rows are JSON lines with an id and a
# prompt. `rollout` lets a policy search and write a program (a prompt with references), `render` draws programs. Any policy
# fits: a run, a model folder, a chat endpoint, or `direct`, which passes the request to the generator as it is. About a
# minute.
#
#   examples/02_own_requests.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v genevolve >/dev/null || PATH="$PWD/.venv/bin:$PATH"
out=${1:-runs/examples/requests}
mkdir -p "$out"

# 1. One request: thoughts, searches, program, picture and verdict, on screen and as a page. `--chat` takes many.
genevolve ask "Show two red lanterns of glass" --out "$out/answer"

# 2. Two requests of the embedded world: its names (Zebeth, ...) are facts that the policy has to look up.
cat > "$out/requests.jsonl" <<'ROWS'
{"id": "calm", "prompt": "Show Zebeth on two legs, calm mood."}
{"id": "pair", "prompt": "Show Zebeth beside a red gem."}
ROWS

# 3. The policy that ships with the embedded world answers them. --sft also keeps the conversations.
genevolve rollout --input "$out/requests.jsonl" --output "$out/agent" --policy genevolve_ray.atlas:cold_start \
    --sft "$out/conversations.jsonl" --in-process --set engine.kind=transformers

# 4. The same requests without an agent: the baseline.
genevolve rollout --input "$out/requests.jsonl" --output "$out/direct" --policy direct --in-process

# 5. Both are drawn.
genevolve render --input "$out/agent/results.json" --output "$out/agent_pictures" --in-process
genevolve render --input "$out/direct/results.json" --output "$out/direct_pictures" --in-process

echo "$out/answer/trajectory.html shows the answer to one request."
echo "Compare $out/agent_pictures/images with $out/direct_pictures/images; $out/conversations.jsonl tells what happened."
