#!/usr/bin/env bash
# Writes what the overlays give to rendered/, for review and for clusters without kustomize. Needs kubectl; no cluster.
set -euo pipefail
cd "$(dirname "$0")"

output=${1:-rendered}
mkdir -p "$output"
for overlay in ray/cluster ray/job ray/aws flower/superlink flower/supernode-example; do
    kubectl kustomize "$overlay" >"$output/${overlay//\//-}.yaml"
done
