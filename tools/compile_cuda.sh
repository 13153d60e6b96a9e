#!/usr/bin/env bash
# Compiles fastrobust._C_cuda from scratch, as setup.py would, and reports register spills. Needs no GPU; where there is
# no nvcc either, it takes one from PyPI into .venv. TORCH_CUDA_ARCH_LIST and MAX_JOBS as for setup.py.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
export PATH="$PWD/.venv/bin:$PATH"

if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  echo "== nvcc from PyPI"
  $python -m pip --disable-pip-version-check install -q 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' \
    'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  CUDA_HOME=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
  ln -sfn lib "$CUDA_HOME/lib64"  # where nvcc looks for the runtime
  export CUDA_HOME
fi

rm -rf build/cuda
cmake -S . -B build/cuda -G Ninja -DFASTROBUST_CUDA=ON -DPython_EXECUTABLE="$PWD/$python" -DCMAKE_CUDA_FLAGS=-Xptxas=-v
jobs=$($python -c 'import os; print(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))')
log=build/cuda/nvcc.log
cmake --build build/cuda --target _C_cuda --parallel "$jobs" 2>&1 | tee "$log" | grep -v -E 'ptxas info|bytes stack frame|^ *$' || true
test -f build/cuda/fastrobust/_C_cuda*.so || { echo "error: _C_cuda did not build" >&2; exit 1; }
# Kernels bound by memory, and those of fully connected networks, must not spill; the others are named, to be judged.
$python tools/spills.py 'cuda::(linf<|mlp::|.*::fours<)' <"$log"
