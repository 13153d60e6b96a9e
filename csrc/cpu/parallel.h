// Threads and their memory.
#pragma once
#include <cstdint>
#include <cstdlib>

#include "fastrobust/types.h"

namespace fastrobust::cpu::FR_ISA {

// Runs `body` in every thread of a team. One thread needs no team, whose start would cost a microsecond; the `omp for`
// within `body` then has the loop to itself.
template <class Body>
void in_team(int threads, const Body& body) {
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body();
  } else {
    body();
  }
}

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

// in_team(threads, item(scratch, i)) for i in 0 .. count - 1, with memory for each thread.
template <class Item>
Status for_each(int threads, int64_t count, int slots, int64_t dim, const Item& item) {
  bool full = false;
  in_team(threads, [&] {
    const Scratch scratch(slots, dim);
    if (!scratch.at) {
#pragma omp atomic write
      full = true;
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      if (scratch.at) item(scratch, i);
    }
  });
  return full ? Status::no_memory : Status::ok;
}

}  // namespace fastrobust::cpu::FR_ISA
