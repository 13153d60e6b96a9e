#!/usr/bin/env bash
# Random tapes through the CPU engine:  tests/engine/run.sh [plain | asan | tsan] [first seed] [seeds]
#   plain    no sanitizer, optimised: for many seeds
#   asan     under AddressSanitizer and UndefinedBehaviorSanitizer, one to three threads
#   tsan     under ThreadSanitizer: system threads that share an engine, no OpenMP teams, whose barriers it cannot see
# Each instruction set that this processor has takes its turn.
set -euo pipefail
mode=${1:-plain}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
exec make --no-print-directory -f "$here/Makefile" -j "${MAX_JOBS:-2}" ROOT="$root" BUILD="$root/build/fuzz/$mode" \
  MODE="$mode" FIRST="${2:-0}" SEEDS="${3:-}" run
