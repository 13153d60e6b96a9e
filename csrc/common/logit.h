// One row of logits: loss, prediction, correctness and d loss / d logits. Written once for a CPU thread and a warp.
//
// `Team` works on the row: team.top(n, f, skip) is the first index of the largest f(i) with !skip(i), or -1;
// team.sum(n, f) adds f(0) .. f(n - 1) in a fixed order; team.any(n, f); team.each(n, f) visits every element, each by
// the member that visits it in `sum`; team.leads() is true in one member, which writes the row's scalars and counts.
#pragma once
#include <type_traits>

#include "fastrobust/logit_loss.h"
#include "math.h"

namespace fastrobust {

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class Z>
FR_HD Z exp_of(Z v) {
  return exp_negative(v);
}
FR_HD float log_of(float v) { return logf(v); }
FR_HD double log_of(double v) { return log(v); }

template <class S>
FR_HD S store_as(Compute<S> v) {
  if constexpr (std::is_same_v<S, double>)
    return v;
  else
    return store<S>(v);
}

// log sum exp(z) as max + log(sum); `keep(i, e)` sees each exponential.
template <class Z>
struct LogSum {
  Z max, sum, log;
};

template <class Team, class F, class Keep>
FR_HD auto log_sum(const Team& team, int64_t n, const F& z, int64_t top, const Keep& keep) {
  using Z = decltype(z(0));
  LogSum<Z> s;
  const Z max = z(top);
  s.max = max;
  s.sum = team.sum(n, [&](int64_t i) {
    const Z e = exp_of(z(i) - max);
    keep(i, e);
    return e;
  });
  s.log = log_of(s.sum);
  return s;
}

template <class Team, class S>
FR_HD_BODY void logit_row(const Team& team, const LogitLoss& a, int64_t row) {
  using Z = Compute<S>;
  const int64_t n = a.classes, y = a.label[row], t = a.target ? a.target[row] : -1;
  const S* logits = static_cast<const S*>(a.logits) + row * n;
  S* grad = static_cast<S*>(a.grad) + row * n;
  const auto z = [&](int64_t i) { return load<Z>(logits[i]); };
  const auto none = [](int64_t) { return false; };

  const bool invalid = y < 0 || y >= n || (a.target && (t < 0 || t >= n));
  const bool nan = team.any(n, [&](int64_t i) { return z(i) != z(i); });
  const int64_t p1 = team.top(n, z, none);
  Z loss = std::numeric_limits<Z>::quiet_NaN();

  if (invalid || nan) {
    const Z fill = invalid ? Z(0) : loss;
    team.each(n, [&](int64_t i) { grad[i] = store_as<S>(fill); });
  } else if (a.kind == Loss::ce) {
    // -log p_y, its labels smoothed towards uniform; towards a target: + log p_t.
    const Z sign = a.target ? Z(-1) : Z(1), smooth = static_cast<Z>(a.smoothing);
    const int64_t label = a.target ? t : y;
    const auto s = log_sum(team, n, z, p1, [&](int64_t i, Z e) {
      if constexpr (std::is_same_v<S, Z>) grad[i] = e;
    });
    Z expected = z(label) - s.max;
    if (smooth > 0) {
      const Z mean = team.sum(n, [&](int64_t i) { return z(i) - s.max; }) / static_cast<Z>(n);
      expected = (Z(1) - smooth) * expected + smooth * mean;
    }
    loss = sign * (s.log - expected);
    const Z scale = sign / s.sum, uniform = sign * smooth / static_cast<Z>(n), hit = sign * (Z(1) - smooth);
    team.each(n, [&](int64_t i) {
      Z e;
      if constexpr (std::is_same_v<S, Z>)
        e = grad[i];
      else
        e = exp_of(z(i) - s.max);
      grad[i] = store_as<S>((e * scale - uniform) - (i == label ? hit : Z(0)));
    });
  } else if (a.kind == Loss::kl) {
    // KL(q || p), q = softmax(reference): d / dz = p - q.
    const S* reference = static_cast<const S*>(a.reference) + row * n;
    const auto r = [&](int64_t i) { return load<Z>(reference[i]); };
    const auto ignore = [](int64_t, Z) {};
    const auto p = log_sum(team, n, z, p1, ignore);
    const auto q = log_sum(team, n, r, team.top(n, r, none), ignore);
    loss = team.sum(n, [&](int64_t i) {
      const Z u = r(i) - q.max, v = z(i) - p.max, weight = exp_of(u) / q.sum;
      return weight > 0 ? weight * ((u - q.log) - (v - p.log)) : weight;
    });
    team.each(n,
              [&](int64_t i) { grad[i] = store_as<S>(exp_of(z(i) - p.max) / p.sum - exp_of(r(i) - q.max) / q.sum); });
  } else {
    // Losses that are ratios of a few logits: d loss / d z has at most five entries.
    Z down = Z(1), slope = Z(0);  // loss = (z_up - z_low) / down, and slope = d loss / d down
    int64_t up, low, p3 = -1, p4 = -1;
    if (a.kind == Loss::margin) {
      const int64_t label = a.target ? t : y;
      const int64_t other = p1 != label ? p1 : team.top(n, z, [&](int64_t i) { return i == label; });
      up = a.target ? label : other;
      low = a.target ? other : label;
    } else {
      const int64_t p2 = team.top(n, z, [&](int64_t i) { return i == p1; });
      p3 = team.top(n, z, [&](int64_t i) { return i == p1 || i == p2; });
      if (a.kind == Loss::dlr_targeted) {
        p4 = team.top(n, z, [&](int64_t i) { return i == p1 || i == p2 || i == p3; });
        down = z(p1) - (z(p3) + z(p4)) / Z(2) + Z(1e-12);
        up = t;
      } else {
        down = z(p1) - z(p3) + Z(1e-12);
        up = p1 != y ? p1 : p2;
      }
      low = y;
    }
    loss = (z(up) - z(low)) / down;
    if (p3 >= 0) slope = -loss / down;
    const Z unit = Z(1) / down, third = p4 >= 0 ? slope / Z(2) : slope;
    team.each(n, [&](int64_t i) {
      Z g = (i == up ? unit : Z(0)) - (i == low ? unit : Z(0));
      if (p3 >= 0) g += (i == p1 ? slope : Z(0)) - (i == p3 || i == p4 ? third : Z(0));
      grad[i] = store_as<S>(g);
    });
  }
  if (team.leads()) {
    const int64_t prediction = nan ? -1 : p1;
    static_cast<Z*>(a.loss)[row] = loss;
    a.prediction[row] = prediction;
    a.correct[row] = prediction >= 0 && !invalid && prediction == y;
    if (invalid && a.invalid) team.count(a.invalid);
  }
}

}  // namespace fastrobust
