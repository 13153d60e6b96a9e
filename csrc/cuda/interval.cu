// Interval propagation. A block of threads takes a part of a channel; what a whole channel must know goes through the
// parts' sums in `work`, in a fixed order.
#include "fastrobust/interval.h"

#include "../common/interval.h"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kThreads = 256, kSums = 3, kParts = 64;
constexpr int64_t kPart = 4096;  // elements that are worth a block

template <class S>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <class S>
using Real = typename RealOf<S>::type;

template <class S>
__device__ __forceinline__ S put(Real<S> v) {
  if constexpr (sizeof(S) == sizeof(Real<S>))
    return v;
  else
    return store<S>(v);
}

int64_t parts_of(const IntervalBlock& a) {
  const int64_t parts = (a.rows * a.size + kPart - 1) / kPart;
  return parts < 1 ? 1 : (parts > kParts ? kParts : parts);
}

// f(place of element i of the channel, its row) for this part of rows begin .. end - 1.
template <class F>
__device__ __forceinline__ void elements(const IntervalBlock& a, int64_t channel, int part, int parts, int64_t begin,
                                         int64_t end, const F& f) {
  const int64_t count = (end - begin) * a.size, first = count * part / parts, last = count * (part + 1) / parts;
  for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
    const int64_t row = begin + i / a.size;
    f((row * a.channels + channel) * a.size + i % a.size);
  }
}

// The sum over the threads of a block, for all of them.
__device__ __forceinline__ double over_block(const Block& block, double v) {
  return block.sum(blockDim.x, [&](int64_t) { return v; });
}

template <class S>
struct Scale {
  Real<S> s, t, size;
  double weight, mean, var;
};

template <class S>
__device__ __forceinline__ Scale<S> scale_of(const IntervalBlock& a, int64_t c, double mean, double var) {
  using Z = Real<S>;
  const double w = a.scale ? static_cast<double>(static_cast<const Z*>(a.scale)[c]) : 1.0;
  double of_x = w, rest = a.shift ? static_cast<double>(static_cast<const Z*>(a.shift)[c]) : 0.0;
  if (a.stat_rows) {
    of_x = w / sqrt(var + a.eps);
    rest -= mean * of_x;
  }
  const Z s = static_cast<Z>(of_x);
  return {s, static_cast<Z>(rest), s < 0 ? -s : s, w, mean, var};
}

template <class S>
__device__ __forceinline__ Scale<S> known_scale(const IntervalBlock& a, int64_t c) {
  using Z = Real<S>;
  if (!a.stat_rows) return scale_of<S>(a, c, 0.0, 0.0);
  return scale_of<S>(a, c, static_cast<const Z*>(a.mean)[c], static_cast<const Z*>(a.var)[c]);
}

// Sum k of the channel's parts.
__device__ __forceinline__ double total(const IntervalBlock& a, int64_t c, int parts, int k) {
  double sum = 0;
  for (int part = 0; part < parts; ++part) sum += a.work[(c * kParts + part) * kSums + k];
  return sum;
}

// Of differences from an element, so that squares do not cancel.
template <class S>
__global__ void __launch_bounds__(kThreads) statistics(const IntervalBlock a, int parts) {
  FR_SHARED(double, scratch);
  const Block block(scratch);
  const int64_t c = blockIdx.x / parts;
  const int part = static_cast<int>(blockIdx.x % parts);
  const S* x = static_cast<const S*>(a.points);
  const double base = load<double>(x[c * a.size]);
  double sum = 0, square = 0;
  elements(a, c, part, parts, 0, a.stat_rows, [&](int64_t at) {
    const double d = load<double>(x[at]) - base;
    sum += d;
    square += d * d;
  });
  sum = over_block(block, sum);
  square = over_block(block, square);
  if (threadIdx.x == 0) {
    a.work[(c * kParts + part) * kSums] = sum;
    a.work[(c * kParts + part) * kSums + 1] = square;
  }
}

template <class S, Function kFunction>
__global__ void __launch_bounds__(kThreads) forward(const IntervalBlock a, int parts) {
  using Z = Real<S>;
  const int64_t c = blockIdx.x / parts, plain = a.rows - a.boxes, back = plain * a.channels * a.size;
  const int part = static_cast<int>(blockIdx.x % parts);
  const S *x = static_cast<const S*>(a.points), *r = static_cast<const S*>(a.radius);
  S *out = static_cast<S*>(a.out), *reach = static_cast<S*>(a.reach);
  double mean = 0, var = 0;
  if (a.stat_rows) {
    const double count = static_cast<double>(a.stat_rows) * a.size, apart = total(a, c, parts, 0) / count;
    mean = load<double>(x[c * a.size]) + apart;
    var = total(a, c, parts, 1) / count - apart * apart;
    var = var < 0 ? 0 : var;
    if (part == 0 && threadIdx.x == 0) {
      static_cast<Z*>(a.mean)[c] = static_cast<Z>(mean);
      static_cast<Z*>(a.var)[c] = static_cast<Z>(var);
    }
  }
  const Scale<S> scale = scale_of<S>(a, c, mean, var);
  const Z p = static_cast<Z>(a.a), q = static_cast<Z>(a.b);
  elements(a, c, part, parts, 0, plain,
           [&](int64_t at) { out[at] = put<S>(value_of<kFunction>(scale.s * load<Z>(x[at]) + scale.t, p, q)); });
  elements(a, c, part, parts, plain, a.rows, [&](int64_t at) {
    const Box<Z> box =
        box_through<kFunction>(scale.s * load<Z>(x[at]) + scale.t, scale.size * load<Z>(r[at - back]), p, q);
    out[at] = put<S>(box.centre);
    reach[at - back] = put<S>(box.radius);
  });
}

template <class S, Function kFunction>
__global__ void __launch_bounds__(kThreads) backward(const IntervalBlock a, int parts) {
  using Z = Real<S>;
  FR_SHARED(double, scratch);
  const Block block(scratch);
  const int64_t c = blockIdx.x / parts, plain = a.rows - a.boxes, back = plain * a.channels * a.size;
  const int part = static_cast<int>(blockIdx.x % parts);
  const S *x = static_cast<const S*>(a.points), *r = static_cast<const S*>(a.radius);
  const S *g = static_cast<const S*>(a.grad_out), *h = static_cast<const S*>(a.grad_reach);
  S *gx = static_cast<S*>(a.grad_points), *gr = static_cast<S*>(a.grad_radius);
  const Scale<S> scale = known_scale<S>(a, c);
  const Z p = static_cast<Z>(a.a), q = static_cast<Z>(a.b);
  double sums[kSums] = {};
  elements(a, c, part, parts, 0, plain, [&](int64_t at) {
    const Z value = load<Z>(x[at]);
    const Z by_m = load<Z>(g[at]) * slope_of<kFunction>(scale.s * value + scale.t, p, q);
    gx[at] = put<S>(by_m * scale.s);
    sums[0] += by_m;
    sums[1] += static_cast<double>(by_m) * value;
  });
  elements(a, c, part, parts, plain, a.rows, [&](int64_t at) {
    const Z value = load<Z>(x[at]), radius = load<Z>(r[at - back]);
    const Box<Z> by = box_back<kFunction>(scale.s * value + scale.t, scale.size * radius, p, q, load<Z>(g[at]),
                                          load<Z>(h[at - back]));
    gx[at] = put<S>(by.centre * scale.s);
    gr[at - back] = put<S>(by.radius * scale.size);
    sums[0] += by.centre;
    sums[1] += static_cast<double>(by.centre) * value;
    sums[2] += static_cast<double>(by.radius) * radius;
  });
  for (int k = 0; k < kSums; ++k) {
    const double sum = over_block(block, sums[k]);
    if (threadIdx.x == 0) a.work[(c * kParts + part) * kSums + k] = sum;
  }
}

// The gradients of a channel's numbers, and what they add to the elements that the statistics are those of.
template <class S>
__global__ void __launch_bounds__(kThreads) finish(const IntervalBlock a, int parts) {
  using Z = Real<S>;
  const int64_t c = blockIdx.x / parts;
  const int part = static_cast<int>(blockIdx.x % parts);
  const Scale<S> scale = known_scale<S>(a, c);
  const double m = total(a, c, parts, 0), mx = total(a, c, parts, 1), qr = total(a, c, parts, 2);
  const bool leads = part == 0 && threadIdx.x == 0;
  Z *by_scale = static_cast<Z*>(a.grad_scale), *by_shift = static_cast<Z*>(a.grad_shift);
  if (!a.stat_rows) {
    if (leads) {
      by_scale[c] = static_cast<Z>(mx + (scale.s > 0 ? qr : (scale.s < 0 ? -qr : 0)));
      by_shift[c] = static_cast<Z>(m);
    }
    return;
  }
  const Z *by_mean = static_cast<const Z*>(a.grad_mean), *by_var = static_cast<const Z*>(a.grad_var);
  const auto found =
      channel_back<Z>(scale.s, scale.weight, scale.mean, scale.var, a.eps, static_cast<double>(a.stat_rows) * a.size, m,
                      mx, qr, by_mean ? by_mean[c] : 0, by_var ? by_var[c] : 0);
  if (leads) {
    by_scale[c] = static_cast<Z>(found.by_scale);
    by_shift[c] = static_cast<Z>(found.by_shift);
  }
  const S* x = static_cast<const S*>(a.points);
  S* gx = static_cast<S*>(a.grad_points);
  const Z mean = static_cast<Z>(scale.mean);
  elements(a, c, part, parts, 0, a.stat_rows, [&](int64_t at) {
    gx[at] = put<S>(load<Z>(gx[at]) + (found.mean_part + found.var_part * (load<Z>(x[at]) - mean)));
  });
}

template <class F>
Status with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(BFloat16{});
    case DType::f16:
      return f(Half{});
  }
  return Status::bad_dtype;
}

// --- margins ---------------------------------------------------------------------------------------------------------

constexpr int kRowThreads = 128;

template <class S>
__global__ void __launch_bounds__(kRowThreads) margins(const IntervalMargins a) {
  using Z = Real<S>;
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
  using Z = Real<S>;
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
    static_cast<S*>(a.grad_centre)[k] = put<S>(by_c);
    static_cast<S*>(a.grad_radius)[k] = put<S>(by_r);
  }
}

// Gradients of the weights and the bias: a thread an element, over the samples in their order.
template <class S>
__global__ void __launch_bounds__(kRowThreads) weights_back(const IntervalMargins a) {
  using Z = Real<S>;
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
    static_cast<S*>(a.grad_weight)[k] = put<S>(sum);
    if (i == 0) static_cast<Z*>(a.grad_bias)[j] = bias;
  }
}

unsigned blocks_of(int64_t items) { return blocks_for((items + kRowThreads - 1) / kRowThreads); }

}  // namespace

Status interval_block(const IntervalBlock& a, void* stream) {
  if (a.rows * a.channels * a.size == 0) return Status::ok;
  const int parts = static_cast<int>(parts_of(a));
  const unsigned grid = static_cast<unsigned>(a.channels * parts);
  const size_t shared = Block::shared_bytes(kThreads);
  return with_type(a.dtype, [&](auto s) {
    using S = decltype(s);
    if (a.stat_rows) FR_LAUNCH(statistics<S>, grid, kThreads, shared, stream, a, parts);
    with_function(a.function, [&](auto function) {
      constexpr Function kFunction = decltype(function)::value;
      FR_LAUNCH((forward<S, kFunction>), grid, kThreads, 0, stream, a, parts);
    });
    return launched();
  });
}

Status interval_block_backward(const IntervalBlock& a, void* stream) {
  if (a.rows * a.channels * a.size == 0) return Status::ok;
  const int parts = static_cast<int>(parts_of(a));
  const unsigned grid = static_cast<unsigned>(a.channels * parts);
  const size_t shared = Block::shared_bytes(kThreads);
  return with_type(a.dtype, [&](auto s) {
    using S = decltype(s);
    with_function(a.function, [&](auto function) {
      constexpr Function kFunction = decltype(function)::value;
      FR_LAUNCH((backward<S, kFunction>), grid, kThreads, shared, stream, a, parts);
    });
    FR_LAUNCH(finish<S>, grid, kThreads, 0, stream, a, parts);
    return launched();
  });
}

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
