#!/usr/bin/env bash
# Training on machines that are reached by ssh: the same command on each. The first one is the meeting point.
#
#   HOSTS="node0 node1 node2" CONFIG="llama3-8b examples/pretrain.yaml" examples/ssh/pretrain.sh
#
# The folder, with .venv, lies at the same place on all machines. Ctrl-C saves and stops (each machine is told).
set -uo pipefail
read -ra hosts <<<"${HOSTS:?names of the machines}"
command="cd $(printf %q "$PWD") && exec .venv/bin/megascratch pretrain --config ${CONFIG:-llama3-8b examples/pretrain.yaml} \
--nnodes ${NNODES:-${#hosts[@]}} --nproc-per-node ${RANKS:-8} --max-restarts ${RESTARTS:-10} \
--rdzv-endpoint ${hosts[0]}:${PORT:-29500} --rdzv-id ${RUN:-$(date +%s)}"
pids=()
for host in "${hosts[@]}"; do
    ${SSH:-ssh -tt} "$host" "$command" &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
code=0
for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
done
exit "$code"
