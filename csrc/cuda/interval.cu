// Interval propagation. A block of threads takes a part of a channel; what a whole channel must know goes through the
// parts' sums in `work`, in a fixed order.
#include "fastrobust/interval.h"

#include "../common/element.h"
#include "../common/interval.h"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kThreads = 256, kSums = 3, kParts = 64;
constexpr int64_t kPart = 4096;  // elements that are worth a block

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
  Compute<S> s, t, size;
  double weight, mean, var;
};

template <class S>
__device__ __forceinline__ Scale<S> scale_of(const IntervalBlock& a, int64_t c, double mean, double var) {
  using Z = Compute<S>;
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
  using Z = Compute<S>;
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
  using Z = Compute<S>;
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
           [&](int64_t at) { out[at] = store_as<S>(value_of<kFunction>(scale.s * load<Z>(x[at]) + scale.t, p, q)); });
  elements(a, c, part, parts, plain, a.rows, [&](int64_t at) {
    const Box<Z> box =
        box_through<kFunction>(scale.s * load<Z>(x[at]) + scale.t, scale.size * load<Z>(r[at - back]), p, q);
    out[at] = store_as<S>(box.centre);
    reach[at - back] = store_as<S>(box.radius);
  });
}

template <class S, Function kFunction>
__global__ void __launch_bounds__(kThreads) backward(const IntervalBlock a, int parts) {
  using Z = Compute<S>;
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
    gx[at] = store_as<S>(by_m * scale.s);
    sums[0] += by_m;
    sums[1] += static_cast<double>(by_m) * value;
  });
  elements(a, c, part, parts, plain, a.rows, [&](int64_t at) {
    const Z value = load<Z>(x[at]), radius = load<Z>(r[at - back]);
    const Box<Z> by = box_back<kFunction>(scale.s * value + scale.t, scale.size * radius, p, q, load<Z>(g[at]),
                                          load<Z>(h[at - back]));
    gx[at] = store_as<S>(by.centre * scale.s);
    gr[at - back] = store_as<S>(by.radius * scale.size);
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
  using Z = Compute<S>;
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
    gx[at] = store_as<S>(load<Z>(gx[at]) + (found.mean_part + found.var_part * (load<Z>(x[at]) - mean)));
  });
}

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

}  // namespace fastrobust::cuda
