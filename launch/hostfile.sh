#!/usr/bin/env bash
# Run a config by DeepSpeed's own launcher on the hosts of a hostfile (lines such as `worker-0 slots=8`); start it once, on
# any of them: HOSTFILE=hosts bash launch/hostfile.sh [--print] CONFIG [key=value ...]
# Every host has this folder, .venv and the run folder under the same paths, and takes ssh without a password. VIA=pdsh
# (default): the launcher reaches the hosts by pdsh. VIA=ssh: this script does, where pdsh is not installed; MASTER_ADDR
# is the address of the first host then (default: its name in the hostfile). Variables for the hosts, such as
# GLOO_SOCKET_IFNAME=eth0, stand in .deepspeed_env, here or in the home folder; DS_ENV_FILE names another file.
source "$(dirname "$0")/environment.sh"
[ $# -ge 1 ] || { echo "usage: HOSTFILE=FILE [VIA=pdsh|ssh MASTER_ADDR=HOST MASTER_PORT=29500] bash launch/hostfile.sh [--print] CONFIG [key=value ...]" >&2; exit 2; }
hostfile="$(realpath "${HOSTFILE:?set HOSTFILE to a file with lines such as: worker-0 slots=8}")"
ensure_environment quickstart
common=(--hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}" ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"})
case "${VIA:-pdsh}" in
    pdsh) start deepspeed "${common[@]}" --launcher pdsh --module pipeline run "$@" ;;
    ssh)
        mapfile -t hosts < <(sed 's/#.*//' "$hostfile" | awk 'NF {print $1}')
        [ -n "${MASTER_ADDR:-}" ] || common+=(--master_addr "${hosts[0]}")
        file="${DS_ENV_FILE:-.deepspeed_env}" pids=()
        mapfile -t carried < <(cat "$HOME/$file" "$file" 2>/dev/null)
        for rank in "${!hosts[@]}"; do
            there=("$VENV/bin/deepspeed" "${common[@]}" --no_ssh --node_rank "$rank" --module pipeline run "$@")
            run ssh "${hosts[$rank]}" "cd ${PWD@Q} && PATH=$VENV/bin:\$PATH env ${carried[*]@Q} ${there[*]@Q}" &
            pids+=($!)
            [ -z "$PRINT" ] || wait $!
        done
        code=0
        for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
        exit $code ;;
    *) echo "VIA=$VIA: choose pdsh or ssh" >&2; exit 2 ;;
esac
