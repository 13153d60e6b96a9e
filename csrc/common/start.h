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
FR_HD void start_block(Norm norm, const Words& words, double* v) {
  if (norm == Norm::linf) {
    for (int k = 0; k < 4; ++k) v[k] = 2.0 * uniform(words.w[k]) - 1.0;
  } else if (norm == Norm::l2) {
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

template <class Team, class T>
FR_HD_BODY void start_row(const Team& team, const StartRow<T>& row) {
  const Row<T, float> box{row.out, row.x, row.x, nullptr, row.dim, 0.0, row.eps, row.ball};
  const Norm norm = row.ball.norm;
  const auto block = [&](int64_t b, double* v) {
    start_block(norm, philox(row.seed, static_cast<uint32_t>(b), row.draw, row.sample, kStartElements), v);
  };
  const int64_t blocks = (row.dim + 3) / 4;
  double total = 0.0;
  if (norm != Norm::linf) {
    total = team.sum(blocks, [&](int64_t b) {
      double v[4], s = 0.0;
      block(b, v);
      for (int k = 0; k < 4; ++k) {
        const double size = norm == Norm::l2 ? v[k] * v[k] : fabs(v[k]);
        s += 4 * b + k < row.dim ? size : 0.0;
      }
      return s;
    });
  }
  const uint32_t word = philox(row.seed, 0, row.draw, row.sample, kStartRadius).w[0];
  const double scale = start_scale(norm, row.eps, total, row.dim, word) * (norm == Norm::linf ? 1.0 : kShrink);
  team.each(blocks, [&](int64_t b) {
    double v[4];
    block(b, v);
    for (int k = 0; k < 4; ++k) {
      const int64_t i = 4 * b + k;
      if (i < row.dim) row.out[i] = clip(add_towards(row.x[i], scale * v[k]), box.lo(i), box.hi(i));
    }
  });
}

}  // namespace fastrobust
