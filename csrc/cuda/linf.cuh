// Linf steps and projections: elementwise, one pass, bound by memory.
//
// A warp works on kPacks * 32 consecutive packs of kPack elements (16 bytes of the iterate, where the pointers allow
// it). All its loads are issued before the first is used.
#pragma once
#include "../common/linf.h"
#include "fastrobust/perturb.h"
#include "launch.cuh"

namespace fastrobust::cuda {

struct NoGradient {};

template <class T>
struct LinfArgs {
  PgdStep a;
  T step, eps, lo, hi;  // what holds where the arrays are null
};

template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T v[kCount];
};

template <class T, class G, int kPack_, bool kFlat_>
struct LinfShape {
  static constexpr bool kStep = !std::is_same_v<G, NoGradient>;
  static constexpr bool kFlat = kFlat_;  // nothing belongs to a sample or a feature
  static constexpr int kThreads = 256, kPack = kPack_, kPacks = kPack == 1 ? 4 : 2;
  static constexpr int kWarpSpan = kWarp * kPacks * kPack, kBlockSpan = kThreads * kPacks * kPack;
};

struct Place {
  int64_t row, column;
};

__device__ __forceinline__ Place place_of(int64_t at, int64_t dim) {
  // 64-bit division is many times slower than 32-bit.
  const int64_t row = ((at | dim) >> 32) == 0 ? static_cast<uint32_t>(at) / static_cast<uint32_t>(dim) : at / dim;
  return {row, at - row * dim};
}

template <class G>
__device__ __forceinline__ int32_t survey(G v) {
  return is_finite(v) ? (v != G(0) ? kUseful : 0) : kNonFinite;
}

__device__ __forceinline__ void flag(int32_t* flags, int64_t row, int32_t found) {
  if (found) atomicOr(flags + row, found);
}

// The elements [at, at + kPack) below `total`; all of them if kWhole.
template <bool kWhole, class T, int kPack>
__device__ __forceinline__ void fetch(Pack<T, kPack>& to, const void* from, int64_t at, int64_t total) {
  const T* p = static_cast<const T*>(from) + at;
  if constexpr (kWhole) {
    to = *reinterpret_cast<const Pack<T, kPack>*>(p);
  } else {
#pragma unroll
    for (int k = 0; k < kPack; ++k) to.v[k] = at + k < total ? p[k] : T{};
  }
}

template <bool kWhole, class T, int kPack>
__device__ __forceinline__ void put(void* to, const Pack<T, kPack>& from, int64_t at, int64_t total) {
  T* p = static_cast<T*>(to) + at;
  if constexpr (kWhole) {
    *reinterpret_cast<Pack<T, kPack>*>(p) = from;
  } else {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (at + k < total) p[k] = from.v[k];
    }
  }
}

template <class Shape, class T, class G>
__device__ __forceinline__ T move(T now, T x, const Pack<G, Shape::kPack>& g, int k, T step, T eps, T lo, T hi) {
  if constexpr (Shape::kStep) {
    using Value = std::conditional_t<std::is_same_v<G, double>, double, float>;
    return linf_step(now, x, load<Value>(g.v[k]), step, eps, lo, hi);
  } else {
    return linf_project(now, x, eps, lo, hi);
  }
}

// One warp's elements from `first`. `inside`: they all belong to the sample of `start`. Returns the flags found for
// that sample; where there are several samples, each thread sets the flags of its own elements itself.
template <class Shape, bool kWhole, class T, class G>
__device__ __forceinline__ int32_t linf_span(const LinfArgs<T>& args, int64_t first, Place start, bool inside) {
  constexpr int kPack = Shape::kPack, kPacks = Shape::kPacks;
  const PgdStep& a = args.a;
  const int64_t total = a.batch * a.dim;
  const int lane = threadIdx.x % kWarp;
  Pack<T, kPack> now[kPacks], x[kPacks];
  Pack<G, kPack> g[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t at = first + (p * kWarp + lane) * kPack;
    fetch<kWhole>(now[p], a.x_adv, at, total);
    fetch<kWhole>(x[p], a.x, at, total);
    if constexpr (Shape::kStep) fetch<kWhole>(g[p], a.grad, at, total);
  }
  int32_t found = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t at = first + (p * kWarp + lane) * kPack;
    if constexpr (Shape::kFlat) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        now[p].v[k] = move<Shape>(now[p].v[k], x[p].v[k], g[p], k, args.step, args.eps, args.lo, args.hi);
      }
    } else {
      const T* steps = static_cast<const T*>(a.step_each);
      const T* sizes = static_cast<const T*>(a.ball.eps_each);
      const T* lows = static_cast<const T*>(a.ball.lo_each);
      const T* highs = static_cast<const T*>(a.ball.hi_each);
      Place here = inside ? Place{start.row, start.column + (at - first)} : place_of(at, a.dim);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        if (!kWhole && at + k >= total) break;
        const T step = steps ? steps[here.row] : args.step, eps = sizes ? sizes[here.row] : args.eps;
        const T lo = lows ? lows[here.column] : args.lo, hi = lows ? highs[here.column] : args.hi;
        now[p].v[k] = move<Shape>(now[p].v[k], x[p].v[k], g[p], k, step, eps, lo, hi);
        if constexpr (Shape::kStep) {
          using Value = std::conditional_t<std::is_same_v<G, double>, double, float>;
          found |= survey(load<Value>(g[p].v[k]));
        }
        const bool last = ++here.column == a.dim;
        if (last || k == kPack - 1 || at + k == total - 1) {
          if (!inside && a.flags) {
            flag(a.flags, here.row, found);
            found = 0;
          }
        }
        if (last) here = {here.row + 1, 0};
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) put<kWhole>(a.out, now[p], first + (p * kWarp + lane) * kPack, total);
  return found;
}

template <class Shape, class T, class G>
__global__ void __launch_bounds__(Shape::kThreads) linf(const LinfArgs<T> args) {
  const PgdStep& a = args.a;
  const int64_t total = a.batch * a.dim;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * Shape::kBlockSpan;
  const int64_t first = block + threadIdx.x / kWarp * Shape::kWarpSpan;
  Place start{0, 0};
  bool inside = true;
  if constexpr (!Shape::kFlat) {
    start = place_of(first, a.dim);
    inside = start.column + Shape::kWarpSpan <= a.dim;
  }
  int32_t found = 0;
  if (first + Shape::kWarpSpan <= total)
    found = linf_span<Shape, true, T, G>(args, first, start, inside);
  else
    found = linf_span<Shape, false, T, G>(args, first, start, inside);

  if constexpr (!Shape::kFlat && Shape::kStep) {
    if (!a.flags) return;
    // One atomic operation for a block within one sample, else one for each warp within one.
    const int64_t column = block - (first - start.column);  // placeholder
  }
}

}  // namespace fastrobust::cuda
