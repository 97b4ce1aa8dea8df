#!/usr/bin/env bash
# Run a config by torchrun; on several nodes start it on every node, run folder on a shared file system:
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash launch/torchrun.sh [--print] CONFIG [key=value ...]
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash launch/torchrun.sh [--print] CONFIG [key=value ...]
# RDZV=c10d: torchrun numbers the nodes itself, NODE_RANK is not needed. PROCESSES: workers on a node (default: one per
# GPU, else one per CPU); the config's `processes` does not count. RESTARTS: how often torchrun starts all workers anew
# after one has failed (default 0); the run goes on from its newest checkpoint.
source "$(dirname "$0")/environment.sh"
[ $# -ge 1 ] || { echo "usage: [RDZV=static|c10d NODES=N NODE_RANK=R MASTER_ADDR=HOST MASTER_PORT=29500] bash launch/torchrun.sh [--print] CONFIG [key=value ...]" >&2; exit 2; }
ensure_environment quickstart
nodes="${NODES:-1}"
[ "$nodes" -eq 1 ] || : "${MASTER_ADDR:?set MASTER_ADDR to the address of node 0}"
address="${MASTER_ADDR:-127.0.0.1}" port="${MASTER_PORT:-29500}"
case "${RDZV:-static}" in
    static)
        [ "$nodes" -eq 1 ] || : "${NODE_RANK:?set NODE_RANK to this node, from 0}"
        meeting=(--node-rank "${NODE_RANK:-0}" --master-addr "$address" --master-port "$port") ;;
    c10d)
        meeting=(--rdzv-backend c10d --rdzv-id "${RDZV_ID:-lemon}" --rdzv-endpoint "$address:$port")
        read -ra way < <("${PYTHON:-python3}" "$ROOT/launch/way.py" "$address" "$port")
        meeting+=("${way[@]}") ;;
    *) echo "RDZV=$RDZV: choose static or c10d" >&2; exit 2 ;;
esac
start torchrun --nnodes "$nodes" --nproc-per-node "${PROCESSES:-auto}" --max-restarts "${RESTARTS:-0}" "${meeting[@]}" \
    --module pipeline run "$@"
