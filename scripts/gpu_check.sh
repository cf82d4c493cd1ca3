#!/usr/bin/env bash
# Builds and checks the CUDA kernels on a bare machine with an NVIDIA GPU and no network: see scripts/gpu_check.py.
#   scripts/gpu_check.sh OUTDIR [--stages build,layout,...] [--minutes 9]
set -euo pipefail
exec "${PYTHON:-python3}" -B -u "$(dirname "$0")/gpu_check.py" "$@"
