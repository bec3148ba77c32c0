#!/bin/bash
# A run on a Slurm allocation: a Ray head on its first node, which is also where the driver runs, a worker on every other.
#
#   sbatch --nodes=2 --gpus-per-node=8 deploy/slurm.sh paper.yaml /shared/runs/paper
#   sbatch --nodes=2 deploy/slurm.sh atlas /shared/runs/atlas --set cluster.strategy=SPREAD
#
# Configuration, run folder, models and data must be reachable under the same paths on every node, the folder on a file
# system that supports flock. Preempted, out of time or short of a node, the job goes back into the queue and the same
# command resumes the run; what a user must mend (exit code 2) does not.
#SBATCH --job-name=genevolve
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
#SBATCH --output=genevolve-%j.log
set -euo pipefail

config=${1:?usage: sbatch deploy/slurm.sh CONFIG RUN [options of genevolve evolve]}
run=${2:?usage: sbatch deploy/slurm.sh CONFIG RUN [options of genevolve evolve]}
shift 2

max_restarts=${GENEVOLVE_MAX_RESTARTS:-20}
start_seconds=${GENEVOLVE_START_SECONDS:-300}
port=$((20000 + SLURM_JOB_ID % 20000))
export PATH=${GENEVOLVE_BIN:-$PWD/.venv/bin}:$PATH

# One token for this user's clusters, in a file that only they can read; it appears on no command line and in no log.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
unset RAY_AUTH_TOKEN
if [[ ! -s $RAY_AUTH_TOKEN_PATH ]]; then
    (umask 077 && mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")" &&
        python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
fi
export RAY_USAGE_STATS_ENABLED=0

head=$(hostname)
export RAY_ADDRESS=$head:$port
resources=(--num-cpus="${SLURM_CPUS_ON_NODE:-$(nproc)}" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --block)
steps=()

finish() { # end what this script started, whatever the end
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
    wait || true
}
trap finish EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$head" --port="$port" --include-dashboard=false "${resources[@]}" &
steps+=($!)
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --exclude="$head" \
        ray start --address="$RAY_ADDRESS" "${resources[@]}" &
    steps+=($!)
fi

again() { # back into the queue, a bounded number of times
    if ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
        echo "$1; this was restart ${SLURM_RESTART_COUNT:-0} of $max_restarts, no further one" >&2
        exit 1
    fi
    echo "$1; requeued" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}

told=0
driver=
trap 'told=1; [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' TERM

python - "$SLURM_JOB_NUM_NODES" "$start_seconds" <<'PYTHON' &
import sys
import time

import ray

nodes, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while True:
    try:
        ray.init(log_to_driver=False, logging_level="error")
        break
    except ConnectionError:
        if time.monotonic() > deadline:
            sys.exit("the head node did not come up")
while sum(node["Alive"] for node in ray.nodes()) < nodes:
    if time.monotonic() > deadline:
        sys.exit(f"not all of {nodes} nodes came up")
    time.sleep(1)
PYTHON
driver=$!
status=0
wait "$driver" || status=$?
((status == 0)) || again "the cluster did not come up"

if ((told == 0)); then
    genevolve evolve "$config" --run "$run" --set cluster.address=auto "$@" &
    driver=$!
    # A signal interrupts `wait`: the driver then still needs time to close its parts.
    while :; do
        status=0
        wait "$driver" || status=$?
        kill -0 "$driver" 2>/dev/null || break
    done
    ((told == 1)) && wait "$driver" 2>/dev/null || true
fi

((told == 0)) || again "told to stop"
case $status in
0) echo "done" ;;
2) exit 2 ;;
*) again "the driver ended with $status" ;;
esac
