// A convolution's transpose by itself, of many functions of its result: blocks of 16 of them, as the engine's
// gradients.
#include "../../cpu/parallel.h"
#include "convolution.h"
#include "lanes.h"

namespace fastrobust::engine::FR_ISA {
namespace {

// A thread's memory, zeroed, as borders must be; `at` is null where there was none left.
struct Zeroed {
  float* at;
  explicit Zeroed(int64_t floats) {
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    at = static_cast<float*>(aligned_alloc(64, bytes));
    if (at) memset(at, 0, bytes);
  }
  ~Zeroed() { free(at); }
  Zeroed(const Zeroed&) = delete;
  Zeroed& operator=(const Zeroed&) = delete;
};

}  // namespace

Status transpose(const Transpose& a, int threads) {
  Layout in{a.in, a.in.c}, out{a.out, a.out.c};
  Contract::widen(a.op, &in, &out, true);
  in.border_h = in.border_w = 0;  // nobody reads it
  Array<int64_t> to, from;
  fill_places(in, a.in, &to);
  fill_places(out, a.out, &from);
  Sums* sums = Contract::direct_backwards<Samples>(a.op, in, out);
  sums->load(a.weight);
  bool full = false;
  cpu::FR_ISA::in_team(
      threads, (a.count + kLanes - 1) / kLanes, [&] { return Zeroed(out.size() + in.size()); },
      [&](const Zeroed& memory, int64_t block) {
        if (!memory.at) {
#pragma omp atomic write
          full = true;
          return;
        }
        const int64_t first = block * kLanes, count = least(kLanes, a.count - first);
        float *rows = memory.at, *result = memory.at + out.size();
        to_lanes(from, a.rows + first * a.out.size(), count, kLanes, rows);
        sums->run(rows, nullptr, Sink{result, nullptr, false, false, false}, nullptr);
        to_rows(to, result, count, kLanes, a.result + first * a.in.size());
      });
  delete sums;
  return full ? Status::no_memory : Status::ok;
}

}  // namespace fastrobust::engine::FR_ISA
