// Margins of the last layer for one instruction set: a thread a sample, of the weights' gradients some features.
#include <algorithm>
#include <limits>

#include "../../common/element.h"
#include "../parallel.h"
#include "fastrobust/interval.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

constexpr int kLanes = 16;

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
  using Z = Compute<S>;
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
  using Z = Compute<S>;
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
    for (int64_t i = 0; i < count; ++i) gc[begin + i] = store_as<S>(by_c[i]), gr[begin + i] = store_as<S>(by_r[i]);
  }
}

// Gradients of the weights of some features: summed over the samples in their order.
constexpr int64_t kFeatures = 64;
template <class S>
void weights_back(const IntervalMargins& a, const Scratch& scratch, int64_t number) {
  using Z = Compute<S>;
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
    for (int64_t i = 0; i < count; ++i) out[j * n + i] = store_as<S>(total[j * kFeatures + i]);
  }
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

}  // namespace

Status margins(const IntervalMargins& a, int threads) {
  return with_type(a.dtype, [&](auto s) {
    in_team(
        team_for(threads, a.batch * a.classes * a.features), a.batch, [] { return 0; },
        [&](int, int64_t b) { margins_of<decltype(s)>(a, b); });
    return Status::ok;
  });
}

Status margins_backward(const IntervalMargins& a, int threads) {
  threads = team_for(threads, a.batch * a.classes * a.features);
  return with_type(a.dtype, [&](auto s) {
    using S = decltype(s);
    in_team(threads, a.batch, [] { return 0; }, [&](int, int64_t b) { sample_back<S>(a, b); });
    bias_back<Compute<S>>(a);
    return for_each(threads, (a.features + kFeatures - 1) / kFeatures, 1, a.classes * kFeatures,
                    [&](const Scratch& scratch, int64_t i) { weights_back<S>(a, scratch, i); });
  });
}

}  // namespace fastrobust::cpu::FR_ISA
