#!/usr/bin/env bash
# Makes a node key for each clinic and registers it with the SuperLink; does nothing for those that have one.
set -euo pipefail

mkdir -p "$FLWR_HOME"
printf '[superlink]\ndefault = "dev"\n[superlink.dev]\naddress = "%s"\nroot-certificates = "%s"\n' \
    "${SUPERLINK:-superlink:8000}" "${TLS:-/tls}/ca.pem" >"$FLWR_HOME/config.toml"

for clinic in "$@"; do
    folder=${CLINICS:-/clinics}/$clinic
    if [ ! -f "$folder/enrolled" ]; then
        test -f "$folder/node" || fedvox-federation node-key "$folder/node"
        flwr supernode register "$folder/node.pub" dev
        touch "$folder/enrolled"
    fi
done
