// One sample's step and projection for L2 and L1, written once for a CPU thread and a CUDA block.
//
// `Team` is whoever works on the sample: team.sum(n, f), team.sum2(n, f), team.max(n, f) reduce f(0) .. f(n - 1) in a
// fixed order, and team.each(n, f) visits all elements. Every member gets the same result, so control flow is uniform.
// team.keep(slot, n, f) is f again: a CPU thread works all values out once, a CUDA block whenever they are asked for.
// team.each_down(n, f) visits elements where Team::Rounding adds downwards.
//
// Lambdas capture by value: what they read then cannot be what they write, and the loops become vector code.
#pragma once
#include "fastrobust/perturb.h"
#include "rounding.h"

namespace fastrobust {

constexpr double kLargest = 1.7976931348623157e308;  // above it, and in no order with it: Inf and NaN

struct Pair {
  double a, b;
};

// Points outside the ball are brought to this much less than eps, and their coordinates rounded towards x, which
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
  const R r = row;
  const double top = team.max(row.dim, [=](int64_t i) FR_LAMBDA {
    const double v = fabs(r.g(i));
    return is_finite(v) ? v : HUGE_VAL;
  });
  const bool odd = !is_finite(top);
  double largest = top;
  if (odd) {
    largest = team.max(row.dim, [=](int64_t i) FR_LAMBDA {
      const double v = fabs(r.g(i));
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

template <class R, class Size, class Capacity>
struct MoveL1 {
  R row;
  Size size;
  Capacity capacity;
  double threshold, share, push;
  FR_HD double operator()(int64_t i) const {
    const double v = size(i), fits = capacity(i), whole = fabs(row.step);
    const double past = fits < whole ? whole + push * (v - threshold) : whole;
    const double length = v > threshold ? past : (v == threshold ? share * fits : 0.0);
    return (row.g(i) > 0) == (row.step > 0) ? length : -length;
  }
};

template <class Team, class R>
FR_HD_BODY auto steepest_l1(const Team& team, const R& row, double largest) {
  const R r = row;
  const double budget = fabs(row.step);
  const auto size = team.keep(2, row.dim, [=](int64_t i) FR_LAMBDA { return fabs(r.g(i)); });
  const auto capacity = team.keep(3, row.dim, [=](int64_t i) FR_LAMBDA {
    const double v = r.g(i);
    return v == 0 ? 0.0 : at_most(budget, room(r, i, static_cast<double>(r.x_adv[i]), v * r.step));
  });
  MoveL1<R, decltype(size), decltype(capacity)> move{row, size, capacity, 0.0, 0.0, kPush * (budget / largest)};
  // Bisection over the bit patterns of |g|, which are ordered as the numbers are: `low` is always a value above
  // which the capacities exceed the budget, `high` one above which they do not.
  const auto above = [&](double t) {
    return team.sum(r.dim, [=](int64_t i) FR_LAMBDA { return size(i) > t ? capacity(i) : 0.0; });
  };
  if (above(0.0) <= budget) return move;
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
  const Pair used = team.sum2(row.dim, [=](int64_t i) FR_LAMBDA {
    const double v = size(i), c = capacity(i);
    return Pair{v > threshold ? c : 0.0, v == threshold ? c : 0.0};
  });
  move.threshold = threshold;
  move.share = used.b > 0 ? at_most(1.0, positive(budget - used.a) / used.b) : 0.0;
  return move;
}

// --- projections: displacements d(i) with space(i) left in the box in their direction ------------------------------

// L2 ball and box (the KKT conditions leave one multiplier): the largest t with || min(t |d|, space) || <= eps. From
// below, each round solves for t with the coordinates that are at the box kept there; their number only grows.
template <class Team, class Delta, class Space>
FR_HD_BODY double solve_l2(const Team& team, int64_t dim, double eps, double norm, Delta delta, Space space) {
  double t = at_most(1.0, eps / norm);
  for (int round = 0; round < 100 && t < 1.0; ++round) {
    const Pair s = team.sum2(dim, [=](int64_t i) FR_LAMBDA {
      const double size = fabs(delta(i)), r = space(i);
      const bool at_box = t * size >= r;
      return Pair{at_box ? r * r : 0.0, at_box ? 0.0 : size * size};
    });
    const double next = s.b > 0 ? at_most(1.0, sqrt(positive(eps * eps - s.a) / s.b)) : 1.0;
    if (!(next > t * (1.0 + 1e-15))) break;
    t = next;
  }
  return t;
}

// L1 ball and box (Croce and Hein, "Mind the box", ICML 2021): the lambda with sum min(max(|d| - lambda, 0), space) =
// eps. The sum is piecewise linear and falls with lambda: Newton on the current piece, bisection where it leaves the
// bracket. A search that ends early returns the end of the bracket that lies in the ball.
template <class Team, class Delta, class Space>
FR_HD_BODY double solve_l1(const Team& team, int64_t dim, double eps, Delta delta, Space space) {
  double low = 0.0, high = team.max(dim, [=](int64_t i) FR_LAMBDA { return fabs(delta(i)); });
  double lambda = 0.0;
  for (int round = 0; round < 200; ++round) {
    const Pair s = team.sum2(dim, [=](int64_t i) FR_LAMBDA {
      const double over = fabs(delta(i)) - lambda, r = space(i);
      return Pair{at_most(positive(over), r), over > 0 && over < r ? 1.0 : 0.0};
    });
    const double excess = s.a - eps;
    if (fabs(excess) <= 1e-13 * eps) return lambda;
    (excess > 0 ? low : high) = lambda;
    const double newton = lambda + excess / s.b;
    lambda = s.b > 0 && newton > low && newton < high ? newton : low + 0.5 * (high - low);
    if (!(lambda > low && lambda < high)) break;
  }
  return high;
}

template <Norm kNorm, class Team, class R, class Move>
FR_HD_BODY void move_and_project(const Team& team, const R& row, const Move& move) {
  constexpr bool l1 = kNorm == Norm::l1;
  const R r = row;
  const int64_t dim = row.dim;
  const double inside = row.eps * (row.grad ? kWellIn : kInside), eps = row.eps * kShrink;
  const auto delta = team.keep(0, dim, [=](int64_t i) FR_LAMBDA {
    return (static_cast<double>(r.x_adv[i]) + move(i)) - static_cast<double>(r.x[i]);
  });
  // In the ball already? Then the box alone counts, and the step is rounded to nearest like any other sum.
  const auto settle = [&] {
    team.each(dim, [=](int64_t i) FR_LAMBDA {
      const auto v = static_cast<typename R::Value>(static_cast<double>(r.x_adv[i]) + move(i));
      r.out[i] = clip(v, r.lo(i), r.hi(i));
    });
  };
  using Rounding = typename Team::Rounding;
  if (!l1 && !row.ball.exact) {
    const double norm = sqrt(team.sum(dim, [=](int64_t i) FR_LAMBDA { return delta(i) * delta(i); }));
    if (norm <= inside) return settle();
    const double t = at_most(1.0, eps / norm);
    return team.each_down(dim, [=](int64_t i) FR_LAMBDA {
      const double d = delta(i);
      r.out[i] = clip(Rounding::towards(r.x[i], t * fabs(d), d), r.lo(i), r.hi(i));
    });
  }
  const auto space =
      team.keep(1, dim, [=](int64_t i) FR_LAMBDA { return room(r, i, static_cast<double>(r.x[i]), delta(i)); });
  const Pair size = team.sum2(dim, [=](int64_t i) FR_LAMBDA {
    const double d = fabs(delta(i)), kept = at_most(d, space(i));
    return l1 ? Pair{kept, 0.0} : Pair{kept * kept, d * d};
  });
  const double norm = l1 ? size.a : sqrt(size.a);
  if (norm <= inside) return settle();
  if constexpr (l1) {
    const double lambda = norm <= eps ? 0.0 : solve_l1(team, dim, eps, delta, space);
    team.each_down(dim, [=](int64_t i) FR_LAMBDA {
      const double d = delta(i), kept = at_most(positive(fabs(d) - lambda), space(i));
      r.out[i] = clip(Rounding::towards(r.x[i], kept, d), r.lo(i), r.hi(i));
    });
  } else {
    const double t = norm <= eps ? 1.0 : solve_l2(team, dim, eps, sqrt(size.b), delta, space);
    team.each_down(dim, [=](int64_t i) FR_LAMBDA {
      const double d = delta(i), kept = at_most(t * fabs(d), space(i));
      r.out[i] = clip(Rounding::towards(r.x[i], kept, d), r.lo(i), r.hi(i));
    });
  }
}

template <class Team, class R>
FR_HD_BODY void step_row_l1(const Team& team, const R& row, int32_t* flags) {
  const double largest = row.grad ? survey(team, row, flags) : 0.0;
  if (largest > 0)
    move_and_project<Norm::l1>(team, row, steepest_l1(team, row, largest));
  else
    move_and_project<Norm::l1>(team, row, NoMove{});
}

template <class Team, class R>
FR_HD_BODY void step_row_l2(const Team& team, const R& row, int32_t* flags) {
  if (!row.grad) return move_and_project<Norm::l2>(team, row, NoMove{});
  const R r = row;
  const auto squares = [&](double inverse) {
    return team.sum(r.dim, [=](int64_t i) FR_LAMBDA {
      const double v = r.g(i) * inverse;
      return v * v;
    });
  };
  // Most gradients need no care: their sum of squares is neither extreme nor NaN, which also says that all elements are
  // finite and one is not zero.
  double inverse = 1.0, sum = squares(1.0);
  *flags = kUseful;
  if (!(sum > 0x1p-900 && sum < 0x1p900)) {
    const double largest = survey(team, row, flags);
    if (!(largest > 0)) return move_and_project<Norm::l2>(team, row, NoMove{});
    inverse = 1.0 / largest;
    sum = squares(inverse);
  }
  move_and_project<Norm::l2>(team, row, MoveL2<R>{row, inverse, row.step / sqrt(sum)});
}

template <Norm kNorm, class Team, class R>
FR_HD_BODY void step_row(const Team& team, const R& row, int32_t* flags) {
  if constexpr (kNorm == Norm::l1)
    step_row_l1(team, row, flags);
  else
    step_row_l2(team, row, flags);
}

}  // namespace fastrobust
