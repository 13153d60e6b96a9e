// Linf steps and projections: elementwise, one pass, bound by memory.
//
// A warp works on kPacks * 32 consecutive packs of kPack elements (16 bytes of the iterate, where the pointers allow
// it). All its loads are issued before the first is used.
#pragma once
#include <type_traits>

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
struct LinfKernel {
  static constexpr bool kStep = !std::is_same_v<G, NoGradient>;
  static constexpr bool kFlat = kFlat_;  // nothing belongs to a sample or a feature
  static constexpr int kThreads = 256, kPack = kPack_, kPacks = kPack == 1 ? 4 : 2;
  static constexpr int kWarpSpan = kWarp * kPacks * kPack, kBlockSpan = kThreads * kPacks * kPack;
  using Value = std::conditional_t<std::is_same_v<G, double>, double, float>;

  struct Place {
    int64_t row, column;
  };

  const LinfArgs<T>& args;
  const PgdStep& a = args.a;
  const int64_t total = a.batch * a.dim;

  __device__ __forceinline__ Place place_of(int64_t at) const {
    // 64-bit division is many times slower than 32-bit.
    const bool narrow = ((at | a.dim) >> 32) == 0;
    const int64_t row = narrow ? static_cast<uint32_t>(at) / static_cast<uint32_t>(a.dim) : at / a.dim;
    return {row, at - row * a.dim};
  }

  // The elements [at, at + kPack) below `total`; all of them if kWhole.
  template <bool kWhole, class E>
  __device__ __forceinline__ void fetch(Pack<E, kPack>& to, const void* from, int64_t at) const {
    const E* p = static_cast<const E*>(from) + at;
    if constexpr (kWhole) {
      to = *reinterpret_cast<const Pack<E, kPack>*>(p);
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k) to.v[k] = at + k < total ? p[k] : E{};
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void put(const Pack<T, kPack>& from, int64_t at) const {
    T* p = static_cast<T*>(a.out) + at;
    if constexpr (kWhole) {
      *reinterpret_cast<Pack<T, kPack>*>(p) = from;
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        if (at + k < total) p[k] = from.v[k];
      }
    }
  }

  __device__ __forceinline__ T step_of(int64_t row) const {
    return !kFlat && a.step_each ? static_cast<const T*>(a.step_each)[row] : args.step;
  }
  __device__ __forceinline__ T eps_of(int64_t row) const {
    return !kFlat && a.ball.eps_each ? static_cast<const T*>(a.ball.eps_each)[row] : args.eps;
  }

  __device__ __forceinline__ T move(T now, T x, G g, T step, T eps, T lo, T hi) const {
    if constexpr (kStep)
      return linf_step(now, x, load<Value>(g), step, eps, lo, hi);
    else
      return linf_project(now, x, eps, lo, hi);
  }

  __device__ __forceinline__ int32_t survey(G g) const {
    if constexpr (kStep) return linf_flags(load<Value>(g));
    return 0;
  }

  __device__ __forceinline__ void flag(int64_t row, int32_t found) const {
    if (found && a.flags) atomicOr(a.flags + row, found);
  }

  // Moves the elements at, at + 1, ... of one pack, which begins at `here`. If `inside`, they belong to one sample, and
  // its flags are returned; otherwise they are set here.
  template <bool kWhole>
  __device__ __forceinline__ int32_t move_pack(Pack<T, kPack>& now, const Pack<T, kPack>& x, const Pack<G, kPack>& g,
                                               int64_t at, Place here, bool inside) const {
    const T* lows = static_cast<const T*>(a.ball.lo_each);
    const T* highs = static_cast<const T*>(a.ball.hi_each);
    int32_t found = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (kWhole || at + k < total) {
        if (here.column == a.dim) {
          flag(here.row, found);
          found = 0;
          here = {here.row + 1, 0};
        }
        const T lo = lows ? lows[here.column] : args.lo, hi = lows ? highs[here.column] : args.hi;
        now.v[k] = move(now.v[k], x.v[k], g.v[k], step_of(here.row), eps_of(here.row), lo, hi);
        found |= survey(g.v[k]);
        ++here.column;
      }
    }
    if (inside) return found;
    flag(here.row, found);
    return 0;
  }

  // One warp's elements from `first`, which lies at `start`. kUniform: one step, radius and box for all of them.
  template <bool kWhole, bool kUniform>
  __device__ __forceinline__ int32_t move_span(int64_t first, Place start, bool inside) const {
    const int lane = threadIdx.x % kWarp;
    Pack<T, kPack> now[kPacks], x[kPacks];
    Pack<G, kPack> g[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int64_t at = first + (p * kWarp + lane) * kPack;
      fetch<kWhole>(now[p], a.x_adv, at);
      fetch<kWhole>(x[p], a.x, at);
      if constexpr (kStep) fetch<kWhole>(g[p], a.grad, at);
    }
    const T step = kUniform ? step_of(start.row) : T(0), eps = kUniform ? eps_of(start.row) : T(0);
    int32_t found = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if constexpr (kUniform) {
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          now[p].v[k] = move(now[p].v[k], x[p].v[k], g[p].v[k], step, eps, args.lo, args.hi);
          found |= survey(g[p].v[k]);
        }
      } else {
        const int64_t at = first + (p * kWarp + lane) * kPack;
        const Place here = inside ? Place{start.row, start.column + (at - first)} : place_of(at);
        found |= move_pack<kWhole>(now[p], x[p], g[p], at, here, inside);
      }
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) put<kWhole>(now[p], first + (p * kWarp + lane) * kPack);
    return found;
  }

  __device__ __forceinline__ void run() const {
    const int64_t block = static_cast<int64_t>(blockIdx.x) * kBlockSpan;
    const int64_t first = block + threadIdx.x / kWarp * kWarpSpan;
    Place start{0, 0};
    bool block_inside = false, inside = false;  // one sample?
    if constexpr (!kFlat) {
      start = place_of(block);
      block_inside = start.column + kBlockSpan <= a.dim;
      start = block_inside ? Place{start.row, start.column + (first - block)} : place_of(first);
      inside = start.row < a.batch && start.column + kWarpSpan <= a.dim;  // the last block's warps may lie past the end
    }
    const bool whole = first + kWarpSpan <= total;
    int32_t found;
    if constexpr (kFlat) {
      found = whole ? move_span<true, true>(first, start, inside) : move_span<false, true>(first, start, inside);
    } else if (inside && !a.ball.lo_each) {
      found = move_span<true, true>(first, start, inside);
    } else {
      found = whole ? move_span<true, false>(first, start, inside) : move_span<false, false>(first, start, inside);
    }
    if constexpr (!kFlat && kStep) {
      // One atomic operation for a block within a sample, else one for each warp within a sample.
      if (!a.flags) return;
      if (block_inside) {
        const int useful = __syncthreads_or(found & kUseful), odd = __syncthreads_or(found & kNonFinite);
        if (threadIdx.x == 0) flag(start.row, (useful ? kUseful : 0) | (odd ? kNonFinite : 0));
      } else if (inside) {
        const int useful = __any_sync(kAllLanes, found & kUseful), odd = __any_sync(kAllLanes, found & kNonFinite);
        if (threadIdx.x % kWarp == 0) flag(start.row, (useful ? kUseful : 0) | (odd ? kNonFinite : 0));
      }
    }
  }
};

template <class Kernel, class T>
__global__ void __launch_bounds__(Kernel::kThreads, 2) linf(const LinfArgs<T> args) {
  Kernel{args}.run();
}

template <class T, class G, int kPack, bool kFlat>
Status launch_linf(const LinfArgs<T>& args, void* stream) {
  using Kernel = LinfKernel<T, G, kPack, kFlat>;
  const int64_t total = args.a.batch * args.a.dim;
  const int64_t blocks = (total + Kernel::kBlockSpan - 1) / Kernel::kBlockSpan;
  FR_LAUNCH((linf<Kernel, T>), static_cast<unsigned>(blocks), Kernel::kThreads, 0, stream, args);
  return launched();
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

template <class T, class G>
Status step_linf(const PgdStep& a, void* stream) {
  constexpr int kPack = 16 / sizeof(T);
  const LinfArgs<T> args{a, static_cast<T>(a.step), cast_down<T>(a.ball.eps), cast_up<T>(a.ball.lo),
                         cast_down<T>(a.ball.hi)};
  const bool flat = !a.step_each && !a.ball.eps_each && !a.ball.lo_each && !a.flags;
  const bool packed = aligned(a.out, sizeof(Pack<T, kPack>)) && aligned(a.x_adv, sizeof(Pack<T, kPack>)) &&
                      aligned(a.x, sizeof(Pack<T, kPack>)) && aligned(a.grad, alignof(Pack<G, kPack>));
  if (packed)
    return flat ? launch_linf<T, G, kPack, true>(args, stream) : launch_linf<T, G, kPack, false>(args, stream);
  return flat ? launch_linf<T, G, 1, true>(args, stream) : launch_linf<T, G, 1, false>(args, stream);
}

}  // namespace fastrobust::cuda
