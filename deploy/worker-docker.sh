#!/bin/sh
# A rollout worker outside the cluster in a container. It opens no port. The token comes from the caller's environment
# and appears on no command line.
#
#   read -rs GENEVOLVE_TOKEN && export GENEVOLVE_TOKEN
#   sh deploy/worker-docker.sh https://gateway.example.org:8470
set -eu
gateway=${1:?usage: worker-docker.sh GATEWAY_URL}
: "${GENEVOLVE_TOKEN:?export the token that the gateway gave you}"

exec docker run --detach --name genevolve-worker \
    --restart on-failure:20 --stop-timeout 120 \
    --gpus all --shm-size 16g --read-only --tmpfs /tmp --volume genevolve-worker:/home/genevolve \
    --cap-drop ALL --security-opt no-new-privileges \
    --env GENEVOLVE_TOKEN \
    "${GENEVOLVE_IMAGE:-genevolve-ray:0.1.0-cuda}" \
    genevolve worker --gateway "$gateway" --token-env GENEVOLVE_TOKEN \
    --device cuda --folder /home/genevolve/worker
