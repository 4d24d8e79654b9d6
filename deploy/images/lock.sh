#!/usr/bin/env bash
# Writes the locks that the images install from: every package of the tested set with the hashes of its files.
# Run it after a change of constraints.txt or of the extras; needs `uv` and a package index.
set -euo pipefail
cd "$(dirname "$0")/../.."

lock() {   # NAME SOURCE [OPTION ...]
    local name=$1
    shift
    uv pip compile "$@" --output-file "deploy/images/$name.lock" --quiet --no-header --no-annotate --generate-hashes \
        --constraints constraints.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28
}

lock training pyproject.toml --extra train --extra s3 --extra benchmark --extra forecast
lock federation pyproject.toml --extra federation --extra s3
lock compliance pyproject.toml --extra web --extra pdf
echo 'hatchling>=1.26' | lock build -
