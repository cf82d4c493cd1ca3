#!/usr/bin/env bash
# Builds and checks the CUDA kernels on a bare machine with an NVIDIA GPU and no network: see scripts/gpu_check.py.
#   scripts/gpu_check.sh OUTDIR [--stages build,layout,...] [--minutes 8]
# On a machine with nvcc but no GPU, to compile the kernels beforehand, into build/prebuilt:
#   scripts/gpu_check.sh --prebuild 90 [--jobs 2]
set -euo pipefail
exec "${PYTHON:-python3}" -B -u "$(dirname "$0")/gpu_check.py" "$@"
