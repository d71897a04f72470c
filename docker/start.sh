#!/bin/sh
# start.sh head|gateway|learner|rollout [options of `ray start`]: what each container runs.
#
#   head      Ray's control service; takes no workers of a job
#   gateway   `headrace serve`, and the Ray node without cores that it speaks through
#   learner   a Ray node that only learners are placed on     } NODE_CPUS cores each, and
#   rollout   a Ray node that only rollout workers are on     } the GPUs that the container sees
#
# RAY_ADDRESS (host:port of the head) and RAY_AUTH_TOKEN (one secret for all nodes) come from the environment.
set -eu

export RAY_USAGE_STATS_ENABLED=0
: "${RAY_AUTH_TOKEN:?every Ray node needs the secret of the cluster}"

role=$1
shift

# Headrace sends only small messages through Ray: the object store is small, and there is no dashboard to protect.
set -- --disable-usage-stats --object-store-memory=134217728 --include-log-monitor=false "$@"

case $role in
head)
    # `ray start` would take this for the cluster to join.
    unset RAY_ADDRESS
    exec ray start --head --port="${RAY_PORT:-6379}" --num-cpus=0 --num-gpus=0 --include-dashboard=false --block "$@"
    ;;
gateway)
    # In the background: the container lives as long as the gateway.
    ray start --address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0 "$@"
    exec python -m headrace_gateway serve
    ;;
learner | rollout)
    # Where the container has control groups of its own, they hold the memory of reward code.
    [ "$role" = learner ] || python -m headrace_rewards control-groups
    exec ray start --address="$RAY_ADDRESS" --num-cpus="${NODE_CPUS:-1}" --resources="{\"headrace_$role\": 1}" --block "$@"
    ;;
*)
    echo "start.sh: no role $role: head, gateway, learner or rollout" >&2
    exit 2
    ;;
esac
