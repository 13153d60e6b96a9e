// The step of Auto-PGD for one instruction set.
#include <cstring>

#include "../parallel.h"
#include "fastrobust/steps.h"

namespace fastrobust::cpu::FR_ISA {

Status pgd_step(const PgdStep& args, int threads);

namespace {

bool is_bad(const float* slope, int64_t n) {
  int useful = 0, odd = 0;
#pragma omp simd reduction(| : useful, odd)
  for (int64_t i = 0; i < n; ++i) {
    const bool finite = slope[i] - slope[i] == 0;
    useful |= finite & (slope[i] != 0);
    odd |= !finite;
  }
  return odd || !useful;
}

}  // namespace

Status apgd_step(const ApgdStep& a, int threads) {
  const int64_t n = a.dim;
  bool full = false;
  const Status status = for_each(threads, a.batch, 1, n, [&](const Scratch& scratch, int64_t b) {
    const int64_t at = b * n;
    float *x = a.x + at, *old = a.old + at, *z = reinterpret_cast<float*>(scratch.at);
    const float* slope = a.slope + at;
    a.bad[b] = is_bad(slope, n);
    if (a.back[b]) {
      memcpy(x, a.best + at, static_cast<size_t>(n) * sizeof(float));
      slope = a.best_slope + at;
    }
    PgdStep step{};
    step.x = a.centre + at;
    step.batch = 1;
    step.dim = n;
    step.ball = a.ball;
    step.ball.eps_each = a.radius + b;
    step.x_adv = x;
    step.out = z;
    step.grad = slope;
    step.step_each = a.length + b;
    bool failed = pgd_step(step, 1) != Status::ok;
    const float share = a.share[b], rest = 1 - share;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) old[i] = x[i] + (z[i] - x[i]) * share + (x[i] - old[i]) * rest;
    step.x_adv = step.out = old;
    step.grad = nullptr;
    failed |= pgd_step(step, 1) != Status::ok;
    if (failed) {
#pragma omp atomic write
      full = true;
    }
  });
  return full ? Status::no_memory : status;
}

}  // namespace fastrobust::cpu::FR_ISA
