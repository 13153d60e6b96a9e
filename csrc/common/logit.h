// One row of logits: loss, prediction, correctness and d loss / d logits. Written once for a CPU thread and a warp.
//
// `Team` works on the row. team.row(slot, n, f) and team.keep(slot, n, f) are f again: a CPU thread works all values
// out once, a warp whenever they are asked for. A thread works on whole vectors: a row goes on with -inf beyond n, what
// is kept of it with what f makes of that, and team.sum(n, f), which adds in a fixed order, wants 0 there. team.top(n,
// f, skip) is the first index of the largest f(i) with !skip(i), or -1; team.any(n, f); team.each(n, f) visits every
// element; team.leads() is true in one member, which writes the row's scalars and counts.
#pragma once
#include "element.h"
#include "fastrobust/logit_loss.h"

namespace fastrobust {

template <class Z>
FR_HD Z exp_of(Z v) {
  return exp_negative(v);
}
FR_HD float log_of(float v) { return logf(v); }
FR_HD double log_of(double v) { return log(v); }

// exp(z - max), its sum and the sum's logarithm; max is z(top).
template <class Z, class E>
struct Exponentials {
  Z max, sum, log;
  E e;
};

template <class Z, class Team, class F>
FR_HD auto exponentials(const Team& team, int slot, int64_t n, const F& z, int64_t top) {
  const Z max = z(top);
  const auto e = team.keep(slot, n, [=](int64_t i) FR_LAMBDA { return exp_of(z(i) - max); });
  const Z sum = team.sum(n, e);
  return Exponentials<Z, decltype(e)>{max, sum, log_of(sum), e};
}

template <class Team, class S>
FR_HD_BODY void logit_row(const Team& team, const LogitLoss& a, int64_t row) {
  using Z = Compute<S>;
  const int64_t n = a.classes, y = a.label[row], t = a.target ? a.target[row] : -1;
  const S* logits = static_cast<const S*>(a.logits) + row * n;
  S* grad = static_cast<S*>(a.grad) + row * n;
  const auto z = team.row(0, n, [=](int64_t i) FR_LAMBDA { return load<Z>(logits[i]); });
  const auto none = [](int64_t) { return false; };

  const bool invalid = y < 0 || y >= n || (a.target && (t < 0 || t >= n));
  const bool nan = team.any(n, [=](int64_t i) FR_LAMBDA { return z(i) != z(i); });
  const int64_t p1 = nan ? -1 : team.top(n, z, none);
  Z loss = std::numeric_limits<Z>::quiet_NaN();

  if (invalid || nan) {
    const S fill = store_as<S>(invalid ? Z(0) : loss);
    team.each(n, [=](int64_t i) FR_LAMBDA { grad[i] = fill; });
  } else if (a.kind == Loss::ce) {
    // -log p_y, its labels smoothed towards uniform; towards a target: + log p_t.
    const Z sign = a.target ? Z(-1) : Z(1), smooth = static_cast<Z>(a.smoothing);
    const auto label = static_cast<int32_t>(a.target ? t : y);
    const auto p = exponentials<Z>(team, 1, n, z, p1);
    Z expected = z(label) - p.max;
    if (smooth > 0) {
      const Z max = p.max;
      const Z sum = team.sum(n, [=](int64_t i) FR_LAMBDA { return i < n ? z(i) - max : Z(0); });
      expected = (Z(1) - smooth) * expected + smooth * (sum / static_cast<Z>(n));
    }
    loss = sign * (p.log - expected);
    const Z scale = sign / p.sum, uniform = sign * smooth / static_cast<Z>(n), hit = sign * (Z(1) - smooth);
    const auto e = p.e;
    team.each(n, [=](int64_t i) FR_LAMBDA {
      grad[i] = store_as<S>((e(i) * scale - uniform) - (static_cast<int32_t>(i) == label ? hit : Z(0)));
    });
  } else if (a.kind == Loss::kl) {
    // KL(q || p), q = softmax(reference): d / dz = p - q.
    const S* reference = static_cast<const S*>(a.reference) + row * n;
    const auto r = team.row(2, n, [=](int64_t i) FR_LAMBDA { return load<Z>(reference[i]); });
    const int64_t top = team.top(n, r, none);
    const auto p = exponentials<Z>(team, 1, n, z, p1);
    const auto q = exponentials<Z>(team, 3, n, r, top < 0 ? 0 : top);
    loss = team.sum(n, [=](int64_t i) FR_LAMBDA {
      const Z weight = q.e(i) / q.sum, term = weight * ((r(i) - q.max - q.log) - (z(i) - p.max - p.log));
      return weight > 0 ? term : weight;
    });
    team.each(n, [=](int64_t i) FR_LAMBDA { grad[i] = store_as<S>(p.e(i) / p.sum - q.e(i) / q.sum); });
  } else if (a.kind == Loss::linear) {
    const S* coefficients = static_cast<const S*>(a.reference) + row * n;
    const auto c = team.row(2, n, [=](int64_t i) FR_LAMBDA { return load<Z>(coefficients[i]); });
    loss = team.sum(n, [=](int64_t i) FR_LAMBDA { return i < n && c(i) != 0 ? c(i) * z(i) : Z(0); });
    team.each(n, [=](int64_t i) FR_LAMBDA { grad[i] = store_as<S>(c(i)); });
  } else {
    // Losses that are ratios of a few logits: d loss / d z has at most five entries.
    Z down = Z(1), slope = Z(0);  // loss = (z_up - z_low) / down, and slope = d loss / d down
    int64_t up, low, p3 = -1, p4 = -1;
    if (a.kind == Loss::margin) {
      const int64_t label = a.target ? t : y;
      const int64_t other = p1 != label ? p1 : team.top(n, z, [=](int64_t i) { return i == label; });
      up = a.target ? label : other;
      low = a.target ? other : label;
    } else {
      const int64_t p2 = team.top(n, z, [=](int64_t i) { return i == p1; });
      const int64_t third = team.top(n, z, [=](int64_t i) { return i == p1 || i == p2; });
      p3 = third;
      if (a.kind == Loss::dlr_targeted) {
        p4 = team.top(n, z, [=](int64_t i) { return i == p1 || i == p2 || i == third; });
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
    const Z unit = Z(1) / down, share = p4 >= 0 ? slope / Z(2) : slope;
    team.each(n, [=](int64_t i) FR_LAMBDA {
      Z g = (i == up ? unit : Z(0)) - (i == low ? unit : Z(0));
      if (p3 >= 0) g += (i == p1 ? slope : Z(0)) - (i == p3 || i == p4 ? share : Z(0));
      grad[i] = store_as<S>(g);
    });
  }
  if (team.leads()) {
    static_cast<Z*>(a.loss)[row] = loss;
    a.prediction[row] = p1;
    a.correct[row] = p1 >= 0 && !invalid && p1 == y;
    if (invalid && a.invalid) team.count(a.invalid);
  }
}

}  // namespace fastrobust
