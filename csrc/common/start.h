// Random starts: uniform in the ball, then into the box. Written once for a CPU thread and a CUDA block (see rows.h).
//
// team.direction<norm>(n, key) is n elements of draws.h; team.sum_kept and team.each_kept visit them.
#pragma once
#include "draws.h"
#include "fastrobust/perturb.h"
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

// The factor that makes the direction a uniform point of the ball: eps U^(1/d) / ||z||_2 for L2, and for L1
// eps / (sum |z_i| + one more exponential) (Barthe et al., 2005).
FR_HD double start_scale(Norm norm, double eps, double total, int64_t dim, uint32_t word) {
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
  const Draw key{row.seed, row.draw, row.sample, row.eps};
  const auto direction = team.template direction<kNorm>(row.dim, key);
  double scale = 1.0;
  if constexpr (kNorm != Norm::linf) {
    const double total =
        team.sum_kept(row.dim, direction, [=](double v) FR_LAMBDA { return kNorm == Norm::l2 ? v * v : fabs(v); });
    const uint32_t word = philox(key.seed, 0, key.draw, key.sample, kStartRadius).w[0];
    scale = start_scale(kNorm, row.eps, total, row.dim, word) * kShrink;
  }
  team.each_kept(row.dim, direction, [=](int64_t i, double v) FR_LAMBDA {
    const double d = kNorm == Norm::linf ? v : scale * v;
    box.out[i] = clip(Team::Rounding::towards(box.x[i], fabs(d), d), box.lo(i), box.hi(i));
  });
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
