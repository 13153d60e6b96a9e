// Random numbers for one instruction set.
#include "../draws.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

template <Norm kNorm>
void fill(const Draw key, int64_t n, double* to) {
#pragma omp simd
  for (int64_t block = 0; block < (n + 3) / 4; ++block) {
    const Four four = direction_block<kNorm>(key, block);
    to[4 * block] = four.v[0];
    to[4 * block + 1] = four.v[1];
    to[4 * block + 2] = four.v[2];
    to[4 * block + 3] = four.v[3];
  }
}

}  // namespace

void direction(Norm norm, const Draw& key, int64_t n, double* to) {
  switch (norm) {
    case Norm::linf:
      return fill<Norm::linf>(key, n, to);
    case Norm::l2:
      return fill<Norm::l2>(key, n, to);
    case Norm::l1:
      return fill<Norm::l1>(key, n, to);
  }
}

}  // namespace fastrobust::cpu::FR_ISA
