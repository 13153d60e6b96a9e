// One sample's step and projection for L2 and L1, written once for a CPU thread and a CUDA block.
//
// `Team` is whoever works on the sample: team.sum(n, f), team.sum2(n, f), team.max(n, f) reduce f(0) .. f(n - 1) in a
// fixed order, and team.each(n, f) visits all elements. Every member gets the same result, so control flow is uniform.
#pragma once
#include "fastrobust/perturb.h"
#include "math.h"

namespace fastrobust {

constexpr double kLargest = 1.7976931348623157e308;  // above it, and in no order with it: Inf and NaN

struct Pair {
  double a, b;
};

// Results at the edge of the ball are shrunk by this much before their coordinates are rounded towards x, which
// covers the rounding of the double-precision norm (ours and that of whoever checks it).
constexpr double kShrink = 1.0 - 0x1p-36;
constexpr double kInside = 1.0 - 0x1p-40;  // a norm below kInside * eps proves that the point lies in the ball
constexpr double kWellIn = 1.0 - 0x1p-20;  // ... and still does after each coordinate is rounded to nearest

// kBoxed: the box may differ by feature; without it, `low` and `high` are its ends, rounded inwards.
template <class T, class G, bool kBoxed = true>
struct Row {
  using Value = T;
  T* out;
  const T* x_adv;
  const T* x;
  const G* grad;  // null: no step
  int64_t dim;
  double step, eps;
  Ball ball;
  T low, high;

  FR_HD T lo(int64_t i) const {
    if constexpr (!kBoxed) return low;
    return ball.lo_each ? static_cast<const T*>(ball.lo_each)[i] : cast_up<T>(ball.lo);
  }
  FR_HD T hi(int64_t i) const {
    if constexpr (!kBoxed) return high;
    return ball.hi_each ? static_cast<const T*>(ball.hi_each)[i] : cast_down<T>(ball.hi);
  }
  FR_HD double g(int64_t i) const { return load<double>(grad[i]); }
};

FR_HD double at_most(double a, double b) { return a < b ? a : b; }
FR_HD double positive(double a) { return a > 0 ? a : 0; }

// How far coordinate i may move from `from` in the direction of `way` before it leaves the box.
template <class R>
FR_HD double room(const R& row, int64_t i, double from, double way) {
  return positive(way > 0 ? static_cast<double>(row.hi(i)) - from : from - static_cast<double>(row.lo(i)));
}

// What the gradient holds: the largest magnitude (0 if any element is not finite) and the flags.
template <class Team, class R>
FR_HD_BODY double survey(const Team& team, const R& row, int32_t* flags) {
  const double top = team.max(row.dim, [&](int64_t i) {
    const double v = fabs(row.g(i));
    return is_finite(v) ? v : HUGE_VAL;
  });
  const bool odd = !is_finite(top);
  double largest = top;
  if (odd) {
    largest = team.max(row.dim, [&](int64_t i) {
      const double v = fabs(row.g(i));
      return v <= kLargest ? v : 0.0;
    });
  }
  const bool useful = largest >= 0x1p-1022;  // a smaller one has no finite inverse
  *flags = (useful ? kUseful : 0) | (odd ? kNonFinite : 0);
  return useful && !odd ? largest : 0.0;
}

// --- steps: the move of coordinate i -------------------------------------------------------------------------------

struct NoMove {
  FR_HD double operator()(int64_t) const { return 0.0; }
};

// L2: step * g / ||g||_2, with g scaled by its largest magnitude so that squares neither overflow nor vanish.
template <class R>
struct MoveL2 {
  R row;  // by value: a device keeps it in registers
  double inverse, scale;
  FR_HD double operator()(int64_t i) const { return scale * (row.g(i) * inverse); }
};

// L1: the steepest step of length `step` inside the box puts as much as fits on the coordinates of largest |g|.
// `threshold` is the |g| at which the length runs out; coordinates that tie there share what is left. Those that fill
// the box are pushed past the box, the farther the larger their |g|, and the projection cuts them there: so it takes
// from the coordinates that matter least, and on a linear loss the steps end only at the optimum.
constexpr double kPush = 1024.0;

template <class R>
struct MoveL1 {
  R row;
  double threshold, share, push;
  FR_HD double capacity(int64_t i) const {
    const double v = row.g(i);
    return v == 0 ? 0.0 : at_most(fabs(row.step), room(row, i, static_cast<double>(row.x_adv[i]), v * row.step));
  }
  FR_HD double operator()(int64_t i) const {
    const double v = row.g(i), size = fabs(v);
    const double fits = capacity(i), whole = fabs(row.step);
    const double past = fits < whole ? whole + push * (size - threshold) : whole;
    const double length = size > threshold ? past : (size == threshold ? share * fits : 0.0);
    return (v > 0) == (row.step > 0) ? length : -length;
  }
};

template <class Team, class R>
FR_HD_BODY MoveL1<R> steepest_l1(const Team& team, const R& row, double largest) {
  const double budget = fabs(row.step);
  MoveL1<R> move{row, -1.0, 0.0, kPush * (budget / largest)};
  // Bisection over the bit patterns of |g|, which are ordered as the numbers are: `low` is always a value above
  // which the capacities exceed the budget, `high` one above which they do not.
  const auto above = [&](double t) {
    return team.sum(row.dim, [&](int64_t i) { return fabs(row.g(i)) > t ? move.capacity(i) : 0.0; });
  };
  if (above(0.0) <= budget) {
    move.threshold = 0.0;
    return move;
  }
  constexpr int spare = sizeof(*row.grad) == 8 ? 0 : 29;  // a narrower gradient leaves these bits zero
  int64_t low = 0, high = bit_cast<int64_t>(largest) >> spare;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (above(bit_cast<double>(middle << spare)) > budget)
      low = middle;
    else
      high = middle;
  }
  const double threshold = bit_cast<double>(high << spare);
  const Pair used = team.sum2(row.dim, [&](int64_t i) {
    const double size = fabs(row.g(i)), capacity = size >= threshold ? move.capacity(i) : 0.0;
    return Pair{size > threshold ? capacity : 0.0, size == threshold ? capacity : 0.0};
  });
  move.threshold = threshold;
  move.share = used.b > 0 ? at_most(1.0, positive(budget - used.a) / used.b) : 0.0;
  return move;
}

// --- projections: what remains of a displacement of size `size` with `space` left in the box -----------------------

struct KeepL2 {  // min(t * size, space)
  double t;
  FR_HD double operator()(double size, double space) const { return at_most(t * size, space); }
};
struct KeepL1 {  // min(max(size - lambda, 0), space)
  double lambda;
  FR_HD double operator()(double size, double space) const { return at_most(positive(size - lambda), space); }
};

// L2 ball and box (the KKT conditions leave one multiplier): the largest t with || min(t |d|, room) || <= eps. From
// below, each round solves for t with the coordinates that are at the box kept there; their number only grows.
template <class Team, class Delta, class Space>
FR_HD_BODY KeepL2 solve_l2(const Team& team, int64_t dim, double eps, bool exact, const Delta& delta,
                           const Space& space) {
  const double all = team.sum(dim, [&](int64_t i) {
    const double d = delta(i);
    return d * d;
  });
  double t = at_most(1.0, eps / sqrt(all));
  for (int round = 0; exact && round < 100 && t < 1.0; ++round) {
    const Pair s = team.sum2(dim, [&](int64_t i) {
      const double d = delta(i), size = fabs(d), r = space(i, d);
      return t * size >= r ? Pair{r * r, 0.0} : Pair{0.0, size * size};
    });
    const double next = s.b > 0 ? at_most(1.0, sqrt(positive(eps * eps - s.a) / s.b)) : 1.0;
    if (!(next > t * (1.0 + 1e-15))) break;
    t = next;
  }
  return {t};
}

// L1 ball and box (Croce and Hein, "Mind the box", ICML 2021): the lambda with sum min(max(|d| - lambda, 0), room) =
// eps. The sum is piecewise linear and falls with lambda: Newton on the current piece, bisection where it leaves the
// bracket.
template <class Team, class Delta, class Space>
FR_HD_BODY KeepL1 solve_l1(const Team& team, int64_t dim, double eps, const Delta& delta, const Space& space) {
  double low = 0.0, high = team.max(dim, [&](int64_t i) { return fabs(delta(i)); });
  double lambda = 0.0;
  for (int round = 0; round < 200; ++round) {
    const Pair s = team.sum2(dim, [&](int64_t i) {
      const double d = delta(i), over = fabs(d) - lambda, r = space(i, d);
      return Pair{at_most(positive(over), r), over > 0 && over < r ? 1.0 : 0.0};
    });
    const double excess = s.a - eps;
    if (fabs(excess) <= 1e-13 * eps) break;
    (excess > 0 ? low : high) = lambda;
    const double newton = lambda + excess / s.b;
    const double next = s.b > 0 && newton > low && newton < high ? newton : low + 0.5 * (high - low);
    if (next == lambda || !(next > low && next < high)) break;
    lambda = next;
  }
  return {lambda};
}

template <class Team, class R, class Move, class Keep>
FR_HD_BODY void write_back(const Team& team, const R& row, const Move& move, const Keep& keep, double norm) {
  const double shrink = norm > row.eps * kInside ? at_most(1.0, row.eps / norm) * kShrink : 1.0;
  team.each(row.dim, [&](int64_t i) {
    const double x = static_cast<double>(row.x[i]);
    const double d = (static_cast<double>(row.x_adv[i]) + move(i)) - x;
    const double kept = keep(fabs(d), room(row, i, x, d)) * shrink;
    row.out[i] = clip(add_towards(row.x[i], d > 0 ? kept : -kept), row.lo(i), row.hi(i));
  });
}

template <Norm kNorm, class Team, class R, class Move>
FR_HD_BODY void move_and_project(const Team& team, const R& row, const Move& move) {
  constexpr bool l1 = kNorm == Norm::l1;
  const auto delta = [&](int64_t i) {
    return (static_cast<double>(row.x_adv[i]) + move(i)) - static_cast<double>(row.x[i]);
  };
  const auto space = [&](int64_t i, double d) { return room(row, i, static_cast<double>(row.x[i]), d); };
  const auto norm_of = [&](const auto& keep) {
    const double s = team.sum(row.dim, [&](int64_t i) {
      const double d = delta(i), kept = keep(fabs(d), space(i, d));
      return l1 ? kept : kept * kept;
    });
    return l1 ? s : sqrt(s);
  };
  const bool sequential = !l1 && !row.ball.exact;
  // In the ball already? Then the box alone counts, and the step is rounded to nearest like any other sum.
  const double free_norm = sequential ? sqrt(team.sum(row.dim,
                                                      [&](int64_t i) {
                                                        const double d = delta(i);
                                                        return d * d;
                                                      }))
                                      : norm_of(KeepL2{1.0});
  if (free_norm <= row.eps * (row.grad ? kWellIn : kInside)) {
    team.each(row.dim, [&](int64_t i) {
      const auto v = static_cast<typename R::Value>(static_cast<double>(row.x_adv[i]) + move(i));
      row.out[i] = clip(v, row.lo(i), row.hi(i));
    });
  } else if constexpr (l1) {
    const KeepL1 keep = free_norm <= row.eps ? KeepL1{0.0} : solve_l1(team, row.dim, row.eps, delta, space);
    write_back(team, row, move, keep, norm_of(keep));
  } else {
    const bool within = !sequential && free_norm <= row.eps;
    const KeepL2 keep = within ? KeepL2{1.0} : solve_l2(team, row.dim, row.eps, !sequential, delta, space);
    write_back(team, row, move, keep, norm_of(keep));
  }
}

template <Norm kNorm, class Team, class R>
FR_HD_BODY void step_row(const Team& team, const R& row, int32_t* flags) {
  const double largest = row.grad ? survey(team, row, flags) : 0.0;
  if (!(largest > 0)) {
    move_and_project<kNorm>(team, row, NoMove{});
  } else if constexpr (kNorm == Norm::l1) {
    move_and_project<kNorm>(team, row, steepest_l1(team, row, largest));
  } else {
    const double inverse = 1.0 / largest;
    const double norm = sqrt(team.sum(row.dim, [&](int64_t i) {
      const double v = row.g(i) * inverse;
      return v * v;
    }));
    move_and_project<kNorm>(team, row, MoveL2<R>{row, inverse, row.step / norm});
  }
}

}  // namespace fastrobust
