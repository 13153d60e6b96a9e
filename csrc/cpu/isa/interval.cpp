// Interval propagation for one instruction set. A block: a thread takes a channel, of features sixteen channels.
#include "fastrobust/interval.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../../common/interval.h"
#include "../parallel.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kSmall = 16384;  // elements that are not worth waking a second thread

template <class S>
using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
FR_HD S put(Real<S> v) {
  if constexpr (std::is_same_v<S, Real<S>>)
    return v;
  else
    return store<S>(v);
}

// What is one thread's: all rows of a channel, lanes being positions; of features (size 1) lanes are channels.
template <class S>
class Unit {
 public:
  using Z = Real<S>;
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
      row(r, [&](int64_t at, auto lanes) {
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
  using Z = Real<S>;
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
    unit.row(0, [&](int64_t at, auto lanes) {
      for (int l = 0; l < lanes; ++l) base[l] = load<Z>(x[at + l]);
    });
    for (int l = 0; l < kLanes; ++l) {
      if (a.size > 1 || l >= unit.channels()) base[l] = load<Z>(x[unit.channel(0) * a.size]);
    }
    double sums[2][kLanes] = {};
    unit.sum(0, a.stat_rows, sums, [&](int64_t, int64_t at, int l, Z(&part)[2][kLanes], int k) {
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
  using Z = Real<S>;
  const Unit<S> unit(a, number);
  const Scales<S> scales(a, unit, false);
  const S *x = static_cast<const S*>(a.points), *r = static_cast<const S*>(a.radius);
  S *out = static_cast<S*>(a.out), *reach = static_cast<S*>(a.reach);
  const Z p = static_cast<Z>(a.a), q = static_cast<Z>(a.b);
  const int64_t plain = a.rows - a.boxes;
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t back = plain * a.channels * a.size;  // from a centre's place to its radius'
    unit.row(row, [&](int64_t at, auto lanes) {
      if (row < plain) {
#pragma omp simd
        for (int l = 0; l < lanes; ++l) {
          out[at + l] = put<S>(value_of<kFunction>(scales.s[l] * load<Z>(x[at + l]) + scales.t[l], p, q));
        }
      } else {
#pragma omp simd
        for (int l = 0; l < lanes; ++l) {
          const Box<Z> box = box_through<kFunction>(scales.s[l] * load<Z>(x[at + l]) + scales.t[l],
                                                    scales.size[l] * load<Z>(r[at - back + l]), p, q);
          out[at + l] = put<S>(box.centre);
          reach[at - back + l] = put<S>(box.radius);
        }
      }
    });
  }
}

template <class S, Function kFunction>
void backward(const IntervalBlock& a, int64_t number) {
  using Z = Real<S>;
  const Unit<S> unit(a, number);
  const Scales<S> scales(a, unit, true);
  const S *x = static_cast<const S*>(a.points), *r = static_cast<const S*>(a.radius);
  const S *g = static_cast<const S*>(a.grad_out), *h = static_cast<const S*>(a.grad_reach);
  S *gx = static_cast<S*>(a.grad_points), *gr = static_cast<S*>(a.grad_radius);
  const Z p = static_cast<Z>(a.a), q = static_cast<Z>(a.b);
  const int64_t plain = a.rows - a.boxes, back = plain * a.channels * a.size;
  double sums[3][kLanes] = {};
  unit.sum(0, plain, sums, [&](int64_t, int64_t at, int l, Z(&part)[3][kLanes], int k) {
    const Z value = load<Z>(x[at]);
    const Z by_m = load<Z>(g[at]) * slope_of<kFunction>(scales.s[l] * value + scales.t[l], p, q);
    gx[at] = put<S>(by_m * scales.s[l]);
    part[0][k] += by_m;
    part[1][k] += by_m * value;
  });
  unit.sum(plain, a.rows, sums, [&](int64_t, int64_t at, int l, Z(&part)[3][kLanes], int k) {
    const Z value = load<Z>(x[at]), radius = load<Z>(r[at - back]);
    const Box<Z> by = box_back<kFunction>(scales.s[l] * value + scales.t[l], scales.size[l] * radius, p, q,
                                          load<Z>(g[at]), load<Z>(h[at - back]));
    gx[at] = put<S>(by.centre * scales.s[l]);
    gr[at - back] = put<S>(by.radius * scales.size[l]);
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
    unit.row(row, [&](int64_t at, auto lanes) {
#pragma omp simd
      for (int l = 0; l < lanes; ++l) {
        gx[at + l] = put<S>(load<Z>(gx[at + l]) + (mean_part[l] + var_part[l] * (load<Z>(x[at + l]) - mean[l])));
      }
    });
  }
}

template <class F>
Status with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      f(float{});
      return Status::ok;
    case DType::f64:
      f(double{});
      return Status::ok;
    case DType::bf16:
      f(BFloat16{});
      return Status::ok;
    case DType::f16:
      f(Half{});
      return Status::ok;
  }
  return Status::bad_dtype;
}

template <class F>
void in_units(int threads, int64_t elements, int64_t count, const F& f) {
  in_team(elements > kSmall ? threads : 1, count, [] { return 0; }, [&](int, int64_t i) { f(i); });
}

Status block(const IntervalBlock& a, int threads) {
  return with_type(a.dtype, [&](auto s) {
    using S = decltype(s);
    with_function(a.function, [&](auto function) {
      in_units(threads, a.rows * a.channels * a.size, Unit<S>::count(a),
               [&](int64_t i) { forward<S, decltype(function)::value>(a, i); });
    });
  });
}

Status block_backward(const IntervalBlock& a, int threads) {
  return with_type(a.dtype, [&](auto s) {
    using S = decltype(s);
    with_function(a.function, [&](auto function) {
      in_units(threads, a.rows * a.channels * a.size, Unit<S>::count(a),
               [&](int64_t i) { backward<S, decltype(function)::value>(a, i); });
    });
  });
}

// --- margins ---------------------------------------------------------------------------------------------------------

// The sum of f(i) over i < n, in fixed lanes.
template <class Z, class F>
FR_HD Z sum_of(int64_t n, const F& f) {
  Z lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lane[l] += f(i + l);
  }
  for (int l = 0; i + l < n; ++l) lane[l] += f(i + l);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  return lane[0];
}

template <class S>
void margins_of(const IntervalMargins& a, int64_t b) {
  using Z = Real<S>;
  const int64_t n = a.features, y = a.label[b];
  const S *c = static_cast<const S*>(a.centre) + b * n, *r = static_cast<const S*>(a.radius) + b * n;
  const S* weight = static_cast<const S*>(a.weight);
  const Z* bias = static_cast<const Z*>(a.bias);
  Z* out = static_cast<Z*>(a.out) + b * a.classes;
  for (int64_t j = 0; j < a.classes; ++j) {
    if (y < 0 || y >= a.classes) {
      out[j] = std::numeric_limits<Z>::quiet_NaN();
      continue;
    }
    const S *own = weight + y * n, *other = weight + j * n;
    const Z inner = sum_of<Z>(n, [&](int64_t i) {
      const Z apart = load<Z>(own[i]) - load<Z>(other[i]);
      return apart * load<Z>(c[i]) - (apart < 0 ? -apart : apart) * load<Z>(r[i]);
    });
    out[j] = inner + (bias ? bias[y] - bias[j] : Z(0));
  }
}

// Gradients of the centre and the radius of a sample.
template <class S>
void sample_back(const IntervalMargins& a, int64_t b) {
  using Z = Real<S>;
  const int64_t n = a.features, y = a.label[b];
  const S* weight = static_cast<const S*>(a.weight);
  const Z* g = static_cast<const Z*>(a.grad) + b * a.classes;
  S *gc = static_cast<S*>(a.grad_centre) + b * n, *gr = static_cast<S*>(a.grad_radius) + b * n;
  const bool known = y >= 0 && y < a.classes;
  constexpr int64_t kPart = 256;
  for (int64_t begin = 0; begin < n; begin += kPart) {
    const int64_t count = std::min(kPart, n - begin);
    Z by_c[kPart] = {}, by_r[kPart] = {};
    for (int64_t j = 0; known && j < a.classes; ++j) {
      const S *own = weight + y * n + begin, *other = weight + j * n + begin;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const Z apart = load<Z>(own[i]) - load<Z>(other[i]);
        by_c[i] += g[j] * apart;
        by_r[i] -= g[j] * (apart < 0 ? -apart : apart);
      }
    }
    for (int64_t i = 0; i < count; ++i) gc[begin + i] = put<S>(by_c[i]), gr[begin + i] = put<S>(by_r[i]);
  }
}

// Gradients of the weights of some features: summed over the samples in their order.
constexpr int64_t kFeatures = 64;
template <class S>
Status weights_back(const IntervalMargins& a, const Scratch& scratch, int64_t number) {
  using Z = Real<S>;
  const int64_t n = a.features, begin = number * kFeatures, count = std::min(kFeatures, n - begin);
  const S* weight = static_cast<const S*>(a.weight) + begin;
  Z* total = reinterpret_cast<Z*>(scratch.at);
  for (int64_t k = 0; k < a.classes * kFeatures; ++k) total[k] = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t y = a.label[b];
    if (y < 0 || y >= a.classes) continue;
    const S *c = static_cast<const S*>(a.centre) + b * n + begin, *r = static_cast<const S*>(a.radius) + b * n + begin;
    const Z* g = static_cast<const Z*>(a.grad) + b * a.classes;
    Z of_own[kFeatures] = {};
    for (int64_t j = 0; j < a.classes; ++j) {
      const S *own = weight + y * n, *other = weight + j * n;
      Z* to = total + j * kFeatures;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const Z apart = load<Z>(own[i]) - load<Z>(other[i]), radius = load<Z>(r[i]);
        const Z part = g[j] * (load<Z>(c[i]) - (apart > 0 ? radius : (apart < 0 ? -radius : Z(0))));
        to[i] -= part;
        of_own[i] += part;
      }
    }
    for (int64_t i = 0; i < count; ++i) total[y * kFeatures + i] += of_own[i];
  }
  S* out = static_cast<S*>(a.grad_weight) + begin;
  for (int64_t j = 0; j < a.classes; ++j) {
    for (int64_t i = 0; i < count; ++i) out[j * n + i] = put<S>(total[j * kFeatures + i]);
  }
  return Status::ok;
}

template <class Z>
void bias_back(const IntervalMargins& a) {
  const Z* g = static_cast<const Z*>(a.grad);
  Z* out = static_cast<Z*>(a.grad_bias);
  for (int64_t j = 0; j < a.classes; ++j) out[j] = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t y = a.label[b];
    if (y < 0 || y >= a.classes) continue;
    for (int64_t j = 0; j < a.classes; ++j) {
      out[j] -= g[b * a.classes + j];
      out[y] += g[b * a.classes + j];
    }
  }
}

Status margins(const IntervalMargins& a, int threads) {
  return with_type(a.dtype, [&](auto s) {
    in_units(threads, a.batch * a.classes * a.features, a.batch, [&](int64_t b) { margins_of<decltype(s)>(a, b); });
  });
}

Status margins_backward(const IntervalMargins& a, int threads) {
  Status status = Status::ok;
  const Status typed = with_type(a.dtype, [&](auto s) {
    using S = decltype(s);
    const int64_t all = a.batch * a.classes * a.features;
    in_units(threads, all, a.batch, [&](int64_t b) { sample_back<S>(a, b); });
    status = for_each(all > kSmall ? threads : 1, (a.features + kFeatures - 1) / kFeatures, 1, a.classes * kFeatures,
                      [&](const Scratch& scratch, int64_t i) { weights_back<S>(a, scratch, i); });
    bias_back<Real<S>>(a);
  });
  return typed == Status::ok ? status : typed;
}

}  // namespace

extern const Interval interval;
const Interval interval{block, block_backward, margins, margins_backward};

}  // namespace fastrobust::cpu::FR_ISA
