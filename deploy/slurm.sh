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

config=${1:?usage: sbatch deploy/slurm.sh CONFIG RUN [OPTIONS of evolve]}
run=${2:?usage: sbatch deploy/slurm.sh CONFIG RUN [OPTIONS of evolve]}
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

# This script runs on the allocation's first node.
head=$SLURMD_NODENAME
address=$(hostname --ip-address)
address=${address%% *}
export RAY_ADDRESS=$address:$port
# A step gets one core unless it says more.
step=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE")
options=(--num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --block)
steps=()

finish() { # end what this script started, whatever the end
    for pid in "${steps[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    wait || true
}
trap finish EXIT

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
child=
trap 'told=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
await() { # wait for a child to its end; a signal interrupts `wait`, and the child then needs time to close its parts
    child=$1 status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    child=
}

come_up() { # wait until so many nodes are there
    python - "$1" "$start_seconds" <<'PYTHON' &
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
    await $!
    ((told == 0)) || again "told to stop"
    ((status == 0)) || again "the cluster did not come up"
}

"${step[@]}" --nodes=1 --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false "${options[@]}" &
steps+=($!)
come_up 1
if ((SLURM_JOB_NUM_NODES > 1)); then
    "${step[@]}" --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$RAY_ADDRESS" "${options[@]}" &
    steps+=($!)
    come_up "$SLURM_JOB_NUM_NODES"
fi

genevolve evolve "$config" --run "$run" --set cluster.address=auto "$@" &
await $!
((told == 0)) || again "told to stop"
case $status in
0) ;;
2) exit 2 ;;
*) again "the driver ended with $status" ;;
esac
