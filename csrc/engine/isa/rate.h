// The most multiply-adds that this processor can do: what the speed of a layer is compared with.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

// Sums that do not wait for each other, all in registers; the number of operations on floats done.
FR_INLINE double multiply_adds(int threads, int64_t rounds) {
#pragma omp parallel num_threads(threads)
  {
    Vec sums[kRegisters];
    for (int i = 0; i < kRegisters; ++i) {
      for (int l = 0; l < kVector; ++l) sums[i][l] = static_cast<float>(i + l);
    }
    const Vec factor = Vec{} + 0.999f, term = Vec{} + 1e-6f;
    for (int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 32
      for (int i = 0; i < kRegisters; ++i) sums[i] = sums[i] * factor + term;
    }
    Vec total{};
    for (const Vec& sum : sums) total += sum;
    alignas(64) volatile float kept[kVector];
    for (int l = 0; l < kVector; ++l) kept[l] = total[l];
    (void)kept[0];
  }
  return 2.0 * kRegisters * kVector * threads * static_cast<double>(rounds);
}

}  // namespace fastrobust::engine::FR_ISA
