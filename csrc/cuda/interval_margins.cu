// Margins of the last layer: a warp a margin; backwards a thread an element.
#include "../common/element.h"
#include "fastrobust/interval.h"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kRowThreads = 128;

template <class S>
__global__ void __launch_bounds__(kRowThreads) margins(const IntervalMargins a) {
  using Z = Compute<S>;
  constexpr int kRows = kRowThreads / kWarp;
  const Warp warp(threadIdx.x % kWarp);
  const Z* bias = static_cast<const Z*>(a.bias);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows, n = a.features;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp; k < a.batch * a.classes; k += step) {
    const int64_t b = k / a.classes, j = k % a.classes, y = a.label[b];
    const bool known = y >= 0 && y < a.classes;
    const S *c = static_cast<const S*>(a.centre) + b * n, *r = static_cast<const S*>(a.radius) + b * n;
    const S* own = static_cast<const S*>(a.weight) + (known ? y : j) * n;
    const S* other = static_cast<const S*>(a.weight) + j * n;
    const Z sum = warp.sum(n, [&](int64_t i) {
      const Z apart = load<Z>(own[i]) - load<Z>(other[i]);
      return apart * load<Z>(c[i]) - (apart < 0 ? -apart : apart) * load<Z>(r[i]);
    });
    if (warp.leads()) {
      Z out = sum + (bias && known ? bias[y] - bias[j] : Z(0));
      static_cast<Z*>(a.out)[k] = known ? out : static_cast<Z>(NAN);
    }
  }
}

// Gradients of centre and radius: a thread an element.
template <class S>
__global__ void __launch_bounds__(kRowThreads) samples_back(const IntervalMargins a) {
  using Z = Compute<S>;
  const int64_t n = a.features, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const S* weight = static_cast<const S*>(a.weight);
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < a.batch * n; k += step) {
    const int64_t b = k / n, i = k % n, y = a.label[b];
    const Z* g = static_cast<const Z*>(a.grad) + b * a.classes;
    Z by_c = 0, by_r = 0;
    for (int64_t j = 0; y >= 0 && y < a.classes && j < a.classes; ++j) {
      const Z apart = load<Z>(weight[y * n + i]) - load<Z>(weight[j * n + i]);
      by_c += g[j] * apart;
      by_r -= g[j] * (apart < 0 ? -apart : apart);
    }
    static_cast<S*>(a.grad_centre)[k] = store_as<S>(by_c);
    static_cast<S*>(a.grad_radius)[k] = store_as<S>(by_r);
  }
}

// Gradients of the weights and the bias: a thread an element, over the samples in their order.
template <class S>
__global__ void __launch_bounds__(kRowThreads) weights_back(const IntervalMargins a) {
  using Z = Compute<S>;
  const int64_t n = a.features, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const S* weight = static_cast<const S*>(a.weight);
  const S *c = static_cast<const S*>(a.centre), *r = static_cast<const S*>(a.radius);
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < a.classes * n; k += step) {
    const int64_t j = k / n, i = k % n;
    const Z own = load<Z>(weight[k]);
    Z sum = 0, bias = 0;
    for (int64_t b = 0; b < a.batch; ++b) {
      const int64_t y = a.label[b];
      if (y < 0 || y >= a.classes) continue;
      const Z* g = static_cast<const Z*>(a.grad) + b * a.classes;
      const Z centre = load<Z>(c[b * n + i]), radius = load<Z>(r[b * n + i]);
      const auto part = [&](Z apart) { return centre - (apart > 0 ? radius : (apart < 0 ? -radius : Z(0))); };
      sum -= g[j] * part(load<Z>(weight[y * n + i]) - own);
      bias -= g[j];
      for (int64_t o = 0; y == j && o < a.classes; ++o) {
        sum += g[o] * part(own - load<Z>(weight[o * n + i]));
        bias += g[o];
      }
    }
    static_cast<S*>(a.grad_weight)[k] = store_as<S>(sum);
    if (i == 0) static_cast<Z*>(a.grad_bias)[j] = bias;
  }
}

unsigned blocks_of(int64_t items) { return blocks_for((items + kRowThreads - 1) / kRowThreads); }

}  // namespace

Status interval_margins(const IntervalMargins& a, void* stream) {
  if (a.batch * a.classes == 0) return Status::ok;
  return with_type(a.dtype, [&](auto s) {
    constexpr int kRows = kRowThreads / kWarp;
    FR_LAUNCH(margins<decltype(s)>, blocks_for((a.batch * a.classes + kRows - 1) / kRows), kRowThreads, 0, stream, a);
    return launched();
  });
}

Status interval_margins_backward(const IntervalMargins& a, void* stream) {
  return with_type(a.dtype, [&](auto s) {
    using S = decltype(s);
    if (a.batch * a.features > 0) {
      FR_LAUNCH(samples_back<S>, blocks_of(a.batch * a.features), kRowThreads, 0, stream, a);
    }
    if (a.classes * a.features > 0) {
      FR_LAUNCH(weights_back<S>, blocks_of(a.classes * a.features), kRowThreads, 0, stream, a);
    }
    return launched();
  });
}

}  // namespace fastrobust::cuda
