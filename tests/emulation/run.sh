#!/usr/bin/env bash
# Tests the CUDA kernels on the CPU:  tests/emulation/run.sh [plain | asan | tsan | mutants | module] [build folder]
#   plain    every check, in three orders of execution
#   asan     the same under AddressSanitizer and UndefinedBehaviorSanitizer
#   tsan     a smaller set, each CUDA thread a system thread, under ThreadSanitizer
#   mutants  plants faults in the kernels, one at a time, and demands that a check fails for each
#   module   builds _C_emulated, a Python module with the ops of _C_cuda, into the build folder
set -euo pipefail
mode=${1:-plain}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$(realpath -m "${2:-$root/build/emulation}")
exec make --no-print-directory -f "$here/Makefile" -j "${MAX_JOBS:-2}" ROOT="$root" BUILD="$build/$mode" MODE="$mode" "run-$mode"
