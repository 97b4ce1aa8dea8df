#!/usr/bin/env bash
# Run a config on several nodes without another launcher; start it on every node, run folder on a shared file system:
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash launch/nodes.sh [--print] CONFIG [key=value ...]
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash launch/nodes.sh [--print] CONFIG [key=value ...]
# Each node starts the config's `processes` workers for every stage; they meet at node 0. Node 0 does the offline stages
# while the others wait (for ten minutes without a sign of life from it, no longer). NODES=6:8 with `restarts: 3` in the
# config goes on with six where others are lost. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose another network interface
# than that on the way to node 0.
source "$(dirname "$0")/environment.sh"
[ $# -ge 1 ] || { echo "usage: NODES=N NODE_RANK=R MASTER_ADDR=HOST [MASTER_PORT=29500] bash launch/nodes.sh [--print] CONFIG [key=value ...]" >&2; exit 2; }
ensure_environment quickstart
start lemon run "$@" --nodes "${NODES:?set NODES to the number of nodes}" --node-rank "${NODE_RANK:?set NODE_RANK to this node, from 0}" \
    --master-addr "${MASTER_ADDR:?set MASTER_ADDR to the address of node 0}" --master-port "${MASTER_PORT:-29500}"
