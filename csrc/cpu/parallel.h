// Threads and their memory.
#pragma once
#include <cstdint>
#include <cstdlib>

#include "fastrobust/types.h"

namespace fastrobust::cpu::FR_ISA {

// item(own, i) for i in 0 .. count - 1, where each thread makes an `own` for itself. One thread needs no team, whose
// start would cost a microsecond, and may be a member of another team already.
template <class Make, class Item>
void in_team(int threads, int64_t count, const Make& make, const Item& item) {
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      auto own = make();
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count; ++i) item(own, i);
    }
  } else {
    auto own = make();
    for (int64_t i = 0; i < count; ++i) item(own, i);
  }
}

// How many threads are worth waking for so many elements.
inline int team_for(int threads, int64_t elements) { return elements > 16384 ? threads : 1; }

// A thread's memory: `slots` rows of `stride` doubles; `at` is null where there was none left.
struct Scratch {
  int64_t stride;
  double* at;
  Scratch(int slots, int64_t dim)
      : stride((dim + 7) / 8 * 8), at(static_cast<double*>(aligned_alloc(64, slots * stride * sizeof(double)))) {}
  ~Scratch() { free(at); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// in_team with a Scratch for each thread.
template <class Item>
Status for_each(int threads, int64_t count, int slots, int64_t dim, const Item& item) {
  bool full = false;
  in_team(
      threads, count, [&] { return Scratch(slots, dim); },
      [&](const Scratch& scratch, int64_t i) {
        if (scratch.at) {
          item(scratch, i);
        } else {
#pragma omp atomic write
          full = true;
        }
      });
  return full ? Status::no_memory : Status::ok;
}

}  // namespace fastrobust::cpu::FR_ISA
