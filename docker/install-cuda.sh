#!/bin/sh
# Installs what building for NVIDIA GPUs and running there needs, from NVIDIA's packages on PyPI: the
# compiler, the runtime's headers and cuBLAS. Needs no GPU and no driver. sh docker/install-cuda.sh [DIR]
# DIR (/usr/local/cuda) must not exist: a toolkit that is there is left alone.
set -eu
to=${1:-/usr/local/cuda}
packages="
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3"

[ ! -x "$to/bin/nvcc" ] || exit 0
[ ! -e "$to" ] || { echo "install-cuda: $to exists and has no nvcc" >&2; exit 1; }
command -v pip3 >/dev/null || { echo "install-cuda: needs pip3 (apt-get install python3-pip)" >&2; exit 1; }

mkdir -p "$(dirname "$to")"
unpacked=$(mktemp -d "$to.XXXXXX")
trap 'rm -rf "$unpacked"' EXIT
# shellcheck disable=SC2086  # one word per package
pip3 install --quiet --no-deps --no-compile --no-cache-dir --target "$unpacked" $packages
mv "$unpacked/nvidia/cu13" "$to"
chmod 755 "$to"
# As a toolkit has them: lib64, and the names that a linker looks for.
ln -s lib "$to/lib64"
for library in "$to"/lib/lib*.so.13; do ln -s "$(basename "$library")" "${library%.13}"; done
"$to/bin/nvcc" --version | tail -n 2
