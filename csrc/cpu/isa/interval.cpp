// Interval propagation for one instruction set. A block: a thread takes a channel, of features sixteen channels.
#include "fastrobust/interval.h"

#include <algorithm>
#include <cmath>

#include "../../common/element.h"
#include "../../common/interval.h"
#include "../parallel.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

constexpr int kLanes = 16;

// What is one thread's: all rows of a channel, lanes being positions; of features (size 1) lanes are channels.
template <class S>
class Unit {
 public:
  using Z = Compute<S>;
  static constexpr std::integral_constant<int, kLanes> kAll{};

  Unit(const IntervalBlock& a, int64_t number)
      : a_(a),
        features_(a.size == 1),
        first_(features_ ? number * kLanes : number),
        count_(features_ ? static_cast<int>(std::min<int64_t>(kLanes, a.channels - first_)) : 1) {}

  static int64_t count(const IntervalBlock& a) { return a.size == 1 ? (a.channels + kLanes - 1) / kLanes : a.channels; }

  // The channel of a lane.
  int64_t channel(int lane) const { return first_ + (features_ ? lane : 0); }
  int channels() const { return count_; }

  // f(place, lanes) for the elements of a row.
  template <class F>
  FR_HD void row(int64_t row, const F& f) const {
    const int64_t at = (row * a_.channels + first_) * a_.size;
    if (features_) {
      if (count_ == kLanes)
        f(at, kAll);
      else
        f(at, count_);
      return;
    }
    int64_t i = 0;
    for (; i + kLanes <= a_.size; i += kLanes) f(at + i, kAll);
    if (i < a_.size) f(at + i, static_cast<int>(a_.size - i));
  }

  // sums[k][channel]: over rows begin .. end - 1 of the kCount numbers that f(place, lane) returns.
  template <int kCount, class F>
  FR_HD void sum(int64_t begin, int64_t end, double (&sums)[kCount][kLanes], const F& f) const {
    double all[kCount][kLanes] = {};
    for (int64_t r = begin; r < end; ++r) {
      Z part[kCount][kLanes] = {};  // a row's sums are of type Z
      row(r, [&](int64_t at, auto lanes) FR_LAMBDA {
#pragma omp simd
        for (int l = 0; l < lanes; ++l) f(r, at + l, l, part, l);
      });
      for (int k = 0; k < kCount; ++k) {
        for (int l = 0; l < kLanes; ++l) all[k][l] += part[k][l];
      }
    }
    for (int k = 0; k < kCount; ++k) {
      double total = 0;
      for (int l = 0; l < kLanes; ++l) total += all[k][l];
      for (int l = 0; l < kLanes; ++l) sums[k][l] += features_ ? all[k][l] : total;
    }
  }

 private:
  const IntervalBlock& a_;
  bool features_;
  int64_t first_;
  int count_;
};

// Scale and shift of a unit's lanes; the statistics that they come from, if they do.
template <class S>
struct Scales {
  using Z = Compute<S>;
  alignas(64) Z s[kLanes], t[kLanes], size[kLanes];
  double weight[kLanes], mean[kLanes], var[kLanes];

  Scales(const IntervalBlock& a, const Unit<S>& unit, bool known) {
    const Z *scale = static_cast<const Z*>(a.scale), *shift = static_cast<const Z*>(a.shift);
    if (a.stat_rows && !known) statistics(a, unit);
    Z *means = static_cast<Z*>(a.mean), *vars = static_cast<Z*>(a.var);
    for (int l = 0; l < kLanes; ++l) {
      const int64_t c = unit.channel(std::min(l, unit.channels() - 1));
      const double w = scale ? static_cast<double>(scale[c]) : 1.0, b = shift ? static_cast<double>(shift[c]) : 0.0;
      weight[l] = w;
      double of_x = w, rest = b;
      if (a.stat_rows) {
        if (known) mean[l] = means[c], var[l] = vars[c];
        of_x = w / std::sqrt(var[l] + a.eps);
        rest = b - mean[l] * of_x;
        if (!known && l < unit.channels()) means[c] = static_cast<Z>(mean[l]), vars[c] = static_cast<Z>(var[l]);
      }
      s[l] = static_cast<Z>(of_x), t[l] = static_cast<Z>(rest);
      size[l] = s[l] < 0 ? -s[l] : s[l];
    }
  }

 private:
  // In one pass, of differences from an element, so that squares do not cancel.
  void statistics(const IntervalBlock& a, const Unit<S>& unit) {
    const S* x = static_cast<const S*>(a.points);
    Z base[kLanes];
    unit.row(0, [&](int64_t at, auto lanes) FR_LAMBDA {
      for (int l = 0; l < lanes; ++l) base[l] = load<Z>(x[at + l]);
    });
    for (int l = 0; l < kLanes; ++l) {
      if (a.size > 1 || l >= unit.channels()) base[l] = load<Z>(x[unit.channel(0) * a.size]);
    }
    double sums[2][kLanes] = {};
    unit.sum(0, a.stat_rows, sums, [&](int64_t, int64_t at, int l, Z(&part)[2][kLanes], int k) FR_LAMBDA {
      const Z d = load<Z>(x[at]) - base[l];
      part[0][k] += d;
      part[1][k] += d * d;
    });
    const double count = static_cast<double>(a.stat_rows) * a.size;
    for (int l = 0; l < kLanes; ++l) {
      const double apart = sums[0][l] / count, square = sums[1][l] / count - apart * apart;
      mean[l] = base[l] + apart;
      var[l] = square > 0 || square != square ? square : 0;
    }
  }
};

template <class S, Function kFunction>
void forward(const IntervalBlock& a, int64_t number) {
  using Z = Compute<S>;
  const Unit<S> unit(a, number);
  const Scales<S> scales(a, unit, false);
  const S *x = static_cast<const S*>(a.points), *r = static_cast<const S*>(a.radius);
  S *out = static_cast<S*>(a.out), *reach = static_cast<S*>(a.reach);
  const Z p = static_cast<Z>(a.a), q = static_cast<Z>(a.b);
  const int64_t plain = a.rows - a.boxes;
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t back = plain * a.channels * a.size;  // from a centre's place to its radius'
    unit.row(row, [&](int64_t at, auto lanes) FR_LAMBDA {
      if (row < plain) {
#pragma omp simd
        for (int l = 0; l < lanes; ++l) {
          out[at + l] = store_as<S>(value_of<kFunction>(scales.s[l] * load<Z>(x[at + l]) + scales.t[l], p, q));
        }
      } else {
#pragma omp simd
        for (int l = 0; l < lanes; ++l) {
          const Box<Z> box = box_through<kFunction>(scales.s[l] * load<Z>(x[at + l]) + scales.t[l],
                                                    scales.size[l] * load<Z>(r[at - back + l]), p, q);
          out[at + l] = store_as<S>(box.centre);
          reach[at - back + l] = store_as<S>(box.radius);
        }
      }
    });
  }
}

template <class S, Function kFunction>
void backward(const IntervalBlock& a, int64_t number) {
  using Z = Compute<S>;
  const Unit<S> unit(a, number);
  const Scales<S> scales(a, unit, true);
  const S *x = static_cast<const S*>(a.points), *r = static_cast<const S*>(a.radius);
  const S *g = static_cast<const S*>(a.grad_out), *h = static_cast<const S*>(a.grad_reach);
  S *gx = static_cast<S*>(a.grad_points), *gr = static_cast<S*>(a.grad_radius);
  const Z p = static_cast<Z>(a.a), q = static_cast<Z>(a.b);
  const int64_t plain = a.rows - a.boxes, back = plain * a.channels * a.size;
  double sums[3][kLanes] = {};
  unit.sum(0, plain, sums, [&](int64_t, int64_t at, int l, Z(&part)[3][kLanes], int k) FR_LAMBDA {
    const Z value = load<Z>(x[at]);
    const Z by_m = load<Z>(g[at]) * slope_of<kFunction>(scales.s[l] * value + scales.t[l], p, q);
    gx[at] = store_as<S>(by_m * scales.s[l]);
    part[0][k] += by_m;
    part[1][k] += by_m * value;
  });
  unit.sum(plain, a.rows, sums, [&](int64_t, int64_t at, int l, Z(&part)[3][kLanes], int k) FR_LAMBDA {
    const Z value = load<Z>(x[at]), radius = load<Z>(r[at - back]);
    const Box<Z> by = box_back<kFunction>(scales.s[l] * value + scales.t[l], scales.size[l] * radius, p, q,
                                          load<Z>(g[at]), load<Z>(h[at - back]));
    gx[at] = store_as<S>(by.centre * scales.s[l]);
    gr[at - back] = store_as<S>(by.radius * scales.size[l]);
    part[0][k] += by.centre;
    part[1][k] += by.centre * value;
    part[2][k] += by.radius * radius;
  });
  Z *by_scale = static_cast<Z*>(a.grad_scale), *by_shift = static_cast<Z*>(a.grad_shift);
  if (!a.stat_rows) {
    for (int l = 0; l < unit.channels(); ++l) {
      const double qr = scales.s[l] > 0 ? sums[2][l] : (scales.s[l] < 0 ? -sums[2][l] : 0);
      by_scale[unit.channel(l)] = static_cast<Z>(sums[1][l] + qr);
      by_shift[unit.channel(l)] = static_cast<Z>(sums[0][l]);
    }
    return;
  }
  const Z *by_mean = static_cast<const Z*>(a.grad_mean), *by_var = static_cast<const Z*>(a.grad_var);
  alignas(64) Z mean_part[kLanes], var_part[kLanes], mean[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const int64_t c = unit.channel(std::min(l, unit.channels() - 1));
    const auto found = channel_back<Z>(scales.s[l], scales.weight[l], scales.mean[l], scales.var[l], a.eps,
                                       static_cast<double>(a.stat_rows) * a.size, sums[0][l], sums[1][l], sums[2][l],
                                       by_mean ? by_mean[c] : 0, by_var ? by_var[c] : 0);
    mean_part[l] = found.mean_part, var_part[l] = found.var_part, mean[l] = static_cast<Z>(scales.mean[l]);
    if (l < unit.channels()) {
      by_scale[c] = static_cast<Z>(found.by_scale);
      by_shift[c] = static_cast<Z>(found.by_shift);
    }
  }
  for (int64_t row = 0; row < a.stat_rows; ++row) {
    unit.row(row, [&](int64_t at, auto lanes) FR_LAMBDA {
#pragma omp simd
      for (int l = 0; l < lanes; ++l) {
        gx[at + l] = store_as<S>(load<Z>(gx[at + l]) + (mean_part[l] + var_part[l] * (load<Z>(x[at + l]) - mean[l])));
      }
    });
  }
}

template <class F>
Status in_units(const IntervalBlock& a, int threads, const F& f) {
  return with_type(a.dtype, [&](auto s) {
    with_function(a.function, [&](auto function) {
      in_team(
          team_for(threads, a.rows * a.channels * a.size), Unit<decltype(s)>::count(a), [] { return 0; },
          [&](int, int64_t i) { f(s, function, i); });
    });
    return Status::ok;
  });
}

Status block(const IntervalBlock& a, int threads) {
  return in_units(a, threads,
                  [&](auto s, auto function, int64_t i) { forward<decltype(s), decltype(function)::value>(a, i); });
}

Status block_backward(const IntervalBlock& a, int threads) {
  return in_units(a, threads,
                  [&](auto s, auto function, int64_t i) { backward<decltype(s), decltype(function)::value>(a, i); });
}

}  // namespace

Status margins(const IntervalMargins&, int threads);  // interval_margins.cpp
Status margins_backward(const IntervalMargins&, int threads);

extern const Interval interval;
const Interval interval{block, block_backward, margins, margins_backward};

}  // namespace fastrobust::cpu::FR_ISA
