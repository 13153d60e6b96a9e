// Random starts: uniform in the ball, then into the box. Written once for a CPU thread and a CUDA block (see rows.h).
#pragma once
#include "fastrobust/perturb.h"
#include "philox.h"
#include "rows.h"

namespace fastrobust {

template <class T>
struct StartRow {
  T* out;
  const T* x;
  int64_t dim;
  double eps;
  Ball ball;
  uint64_t seed;
  uint32_t sample, draw;
};

// Elements 4 * block .. of the direction: uniform in [-1, 1] (Linf), normal (L2), Laplace (L1).
template <Norm kNorm>
FR_HD void start_block(const Words& words, double* v) {
  if constexpr (kNorm == Norm::linf) {
    for (int k = 0; k < 4; ++k) v[k] = 2.0 * uniform(words.w[k]) - 1.0;
  } else if constexpr (kNorm == Norm::l2) {
    normal_pair(words.w[0], words.w[1], v, v + 1);
    normal_pair(words.w[2], words.w[3], v + 2, v + 3);
  } else {
    for (int k = 0; k < 4; ++k) v[k] = laplace(words.w[k]);
  }
}

// The factor that makes the direction a uniform point of the ball: eps for Linf, eps U^(1/d) / ||z||_2 for L2, and for
// L1 eps / (sum |z_i| + one more exponential) (Barthe et al., 2005).
FR_HD double start_scale(Norm norm, double eps, double total, int64_t dim, uint32_t word) {
  if (norm == Norm::linf) return eps;
  if (norm == Norm::l1) return eps / (total - log_positive(uniform(word)));
  return total > 0 ? eps * pow(uniform(word), 1.0 / static_cast<double>(dim)) / sqrt(total) : 0.0;
}

template <Norm kNorm, bool kBoxed, class Team, class T>
FR_HD_BODY void start_in(const Team& team, const StartRow<T>& row) {
  const Row<T, float, kBoxed> box{row.out,
                                  row.x,
                                  row.x,
                                  nullptr,
                                  row.dim,
                                  0.0,
                                  row.eps,
                                  row.ball,
                                  cast_up<T>(row.ball.lo),
                                  cast_down<T>(row.ball.hi)};
  const auto block = [&](int64_t b, double* v) {
    start_block<kNorm>(philox(row.seed, static_cast<uint32_t>(b), row.draw, row.sample, kStartElements), v);
  };
  const int64_t whole = row.dim / 4, rest = row.dim % 4;  // full blocks, and elements of one more
  double total = 0.0;
  if constexpr (kNorm != Norm::linf) {
    const auto size = [&](int64_t b, int64_t count) {
      double v[4], s = 0.0;
      block(b, v);
      for (int k = 0; k < 4; ++k) s += k < count ? (kNorm == Norm::l2 ? v[k] * v[k] : fabs(v[k])) : 0.0;
      return s;
    };
    total = team.sum(whole, [&](int64_t b) { return size(b, 4); }) + (rest ? size(whole, rest) : 0.0);
  }
  const uint32_t word = philox(row.seed, 0, row.draw, row.sample, kStartRadius).w[0];
  const double scale = start_scale(kNorm, row.eps, total, row.dim, word) * (kNorm == Norm::linf ? 1.0 : kShrink);
  const auto put = [&](int64_t b, int64_t count) {
    double v[4];
    block(b, v);
    for (int k = 0; k < 4; ++k) {
      const int64_t i = 4 * b + k;
      if (k < count) row.out[i] = clip(add_towards(row.x[i], scale * v[k]), box.lo(i), box.hi(i));
    }
  };
  team.each(whole, [&](int64_t b) { put(b, 4); });
  team.each(rest ? 1 : 0, [&](int64_t) { put(whole, rest); });
}

template <class Team, class T>
FR_HD_BODY void start_row(const Team& team, const StartRow<T>& row) {
  const bool boxed = row.ball.lo_each;
  switch (row.ball.norm) {
    case Norm::linf:
      return boxed ? start_in<Norm::linf, true>(team, row) : start_in<Norm::linf, false>(team, row);
    case Norm::l2:
      return boxed ? start_in<Norm::l2, true>(team, row) : start_in<Norm::l2, false>(team, row);
    case Norm::l1:
      return boxed ? start_in<Norm::l1, true>(team, row) : start_in<Norm::l1, false>(team, row);
  }
}

}  // namespace fastrobust
