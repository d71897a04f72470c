#!/bin/sh
# Write docker/.env from .env.example, with fresh secrets, readable by its owner alone. An existing one is kept.
set -eu
cd "$(dirname "$0")"
umask 077

secret() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

if [ -e .env ]; then
    echo "docker/.env is there already, and is kept"
    exit 0
fi
sed -e "s/^REDIS_PASSWORD=$/&$(secret)/" -e "s/^RAY_AUTH_TOKEN=$/&$(secret)/" .env.example >.env
mkdir -p shared/models
echo "docker/.env is written; next: docker compose --file docker/compose.yaml up --build --detach --wait"
