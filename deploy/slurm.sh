#!/bin/bash
# A run on a Slurm allocation: a Ray head and the driver on its first node, and a Ray worker on every other node.
#
#   sbatch --nodes=2 --gpus-per-node=8 deploy/slurm.sh paper.yaml /shared/runs/paper
#   sbatch --nodes=2 deploy/slurm.sh atlas /shared/runs/atlas --set cluster.strategy=SPREAD
#
# Configuration, run folder, models and data must have the same paths on every node. The run folder needs a file system
# that supports flock. If the job is preempted, out of time or short of a node, it is requeued, and the same command
# resumes the run. Exit code 2 needs a fix by the user and is not requeued.
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

# One token for this user's clusters, in a file that only this user can read. No command line or log contains it.
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
# By default a step gets one core.
step=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE")
options=(--num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --block)
steps=()

finish() { # end all steps of this script on every exit path
    for pid in "${steps[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    wait || true
}
trap finish EXIT

again() { # requeue the job, a bounded number of times
    if ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
        echo "$1; not requeued after restart ${SLURM_RESTART_COUNT:-0} of $max_restarts" >&2
        exit 1
    fi
    echo "$1; requeued" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}

terminated=0
child=
trap 'terminated=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
await() { # wait until a child exits; a signal interrupts `wait`, and the child then needs time to shut down
    child=$1 status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    child=
}

await_nodes() { # wait until this many nodes have joined
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
            sys.exit("the head node did not start")
while sum(node["Alive"] for node in ray.nodes()) < nodes:
    if time.monotonic() > deadline:
        sys.exit(f"not all of {nodes} nodes joined")
    time.sleep(1)
PYTHON
    await $!
    ((terminated == 0)) || again "received SIGTERM"
    ((status == 0)) || again "the cluster did not start"
}

"${step[@]}" --nodes=1 --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false "${options[@]}" &
steps+=($!)
await_nodes 1
if ((SLURM_JOB_NUM_NODES > 1)); then
    "${step[@]}" --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$RAY_ADDRESS" "${options[@]}" &
    steps+=($!)
    await_nodes "$SLURM_JOB_NUM_NODES"
fi

genevolve evolve "$config" --run "$run" --set cluster.address=auto "$@" &
await $!
((terminated == 0)) || again "received SIGTERM"
case $status in
0) ;;
2) exit 2 ;;
*) again "the driver exited with $status" ;;
esac
