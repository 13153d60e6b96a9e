// A CUDA block or a warp as the team that works on a sample (common/rows.h), a warp as the one for a row
// (common/logit.h).
//
// Both reduce by butterflies: addition commutes, so every lane ends with the same bits, and the order depends on the
// team's size alone, never on the grid, the batch or the schedule.
#pragma once
#include "../common/draws.h"
#include "../common/rows.h"
#include "launch.cuh"

namespace fastrobust::cuda {

struct Add {
  template <class Z>
  __device__ Z operator()(Z a, Z b) const {
    return a + b;
  }
};
struct Larger {
  __device__ double operator()(double a, double b) const { return b > a ? b : a; }
};

// Lanes that differ in the bits below `width`, a power of two, are combined.
template <class Z, class Op>
__device__ __forceinline__ Z butterfly(Z v, int width, const Op& op) {
  for (int distance = width / 2; distance > 0; distance /= 2) v = op(v, __shfl_xor_sync(kAllLanes, v, distance));
  return v;
}

// The block's size is a power of two and a multiple of the warp.
class Block {
 public:
  using Rounding = ByError;
  static constexpr int kSlots = 2;  // a warp's results: one, or a Pair

  static size_t shared_bytes(int threads) { return 2 * kSlots * (threads / kWarp) * sizeof(double); }

  __device__ explicit Block(double* scratch) : scratch_(scratch) {}

  template <class F>
  __device__ __forceinline__ double sum(int64_t n, const F& f) const {
    double v[1] = {0.0};
    each(n, [&](int64_t i) { v[0] += f(i); });
    combine(v, Add{});
    return v[0];
  }

  template <class F>
  __device__ __forceinline__ Pair sum2(int64_t n, const F& f) const {
    double v[2] = {0.0, 0.0};
    each(n, [&](int64_t i) {
      const Pair p = f(i);
      v[0] += p.a;
      v[1] += p.b;
    });
    combine(v, Add{});
    return {v[0], v[1]};
  }

  template <class F>
  __device__ __forceinline__ double max(int64_t n, const F& f) const {  // of values >= 0
    double v[1] = {0.0};
    each(n, [&](int64_t i) { v[0] = Larger{}(v[0], f(i)); });
    combine(v, Larger{});
    return v[0];
  }

  template <class F>
  __device__ __forceinline__ void each(int64_t n, const F& f) const {
#pragma unroll 2
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }

  template <class F>
  __device__ __forceinline__ void each_down(int64_t n, const F& f) const {
    each(n, f);
  }

  template <class F>
  __device__ __forceinline__ F keep(int, int64_t, const F& f) const {
    return f;
  }

  template <Norm kNorm>
  __device__ __forceinline__ auto direction(int64_t, const Draw& key) const {
    return [=](int64_t block) { return direction_block<kNorm>(key, block); };
  }

  template <class Fours, class F>
  __device__ __forceinline__ double sum_kept(int64_t n, const Fours& fours, const F& f) const {
    return sum((n + 3) / 4, [&](int64_t block) {
      const auto four = fours(block);
      double s = 0.0;
      for (int k = 0; k < 4; ++k) s += 4 * block + k < n ? f(four.v[k]) : 0.0;
      return s;
    });
  }

  template <class Fours, class F>
  __device__ __forceinline__ void each_kept(int64_t n, const Fours& fours, const F& f) const {
    each((n + 3) / 4, [&](int64_t block) {
      const auto four = fours(block);
      for (int k = 0; k < 4; ++k) {
        if (4 * block + k < n) f(4 * block + k, four.v[k]);
      }
    });
  }

 private:
  // Two halves of the scratch take turns, so that one barrier is enough: a half is written again only after the next
  // barrier, which nobody passes before everybody has read it.
  template <int kValues, class Op>
  __device__ __forceinline__ void combine(double (&v)[kValues], const Op& op) const {
    const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    double* slots = scratch_ + turn_ * kSlots * warps;
    turn_ = 1 - turn_;
    for (int k = 0; k < kValues; ++k) {
      v[k] = butterfly(v[k], kWarp, op);
      if (lane == 0) slots[k * warps + warp] = v[k];
    }
    __syncthreads();
    for (int k = 0; k < kValues; ++k) v[k] = butterfly(slots[k * warps + lane % warps], warps, op);
  }

  double* scratch_;
  mutable int turn_ = 0;
};

class Warp {
 public:
  using Rounding = ByError;

  __device__ explicit Warp(int lane) : lane_(lane) {}

  template <class F>
  __device__ __forceinline__ F row(int, int64_t, const F& f) const {
    return f;
  }

  template <class F>
  __device__ __forceinline__ F keep(int, int64_t, const F& f) const {
    return f;
  }

  // The largest element, the first of equals. Lane 0 decides, so that NaN cannot split the warp.
  template <class F, class Skip>
  __device__ __forceinline__ int64_t top(int64_t n, const F& f, const Skip& skip) const {
    int64_t best = -1;
    decltype(f(0)) value{};
    each(n, [&](int64_t i) {
      const auto v = f(i);
      if (!skip(i) && (best < 0 || v > value)) {
        best = i;
        value = v;
      }
    });
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const int64_t other = __shfl_xor_sync(kAllLanes, best, distance);
      const auto v = __shfl_xor_sync(kAllLanes, value, distance);
      if (other >= 0 && (best < 0 || v > value || (v == value && other < best))) {
        best = other;
        value = v;
      }
    }
    return __shfl_sync(kAllLanes, best, 0);
  }

  template <class F>
  __device__ __forceinline__ bool any(int64_t n, const F& f) const {
    bool found = false;
    each(n, [&](int64_t i) { found |= f(i); });
    return __any_sync(kAllLanes, found);
  }

  template <class F>
  __device__ __forceinline__ auto sum(int64_t n, const F& f) const {
    decltype(f(0)) v{};
    each(n, [&](int64_t i) { v += f(i); });
    return butterfly(v, kWarp, Add{});
  }

  template <class F>
  __device__ __forceinline__ Pair sum2(int64_t n, const F& f) const {
    Pair v{0.0, 0.0};
    each(n, [&](int64_t i) {
      const Pair p = f(i);
      v = {v.a + p.a, v.b + p.b};
    });
    return {butterfly(v.a, kWarp, Add{}), butterfly(v.b, kWarp, Add{})};
  }

  template <class F>
  __device__ __forceinline__ double max(int64_t n, const F& f) const {  // of values >= 0
    double v = 0.0;
    each(n, [&](int64_t i) { v = Larger{}(v, f(i)); });
    return butterfly(v, kWarp, Larger{});
  }

  template <class F>
  __device__ __forceinline__ void each(int64_t n, const F& f) const {
#pragma unroll 2
    for (int64_t i = lane_; i < n; i += kWarp) f(i);
  }

  template <class F>
  __device__ __forceinline__ void each_down(int64_t n, const F& f) const {
    each(n, f);
  }

  __device__ bool leads() const { return lane_ == 0; }
  __device__ void count(int32_t* counter) const { atomicAdd(counter, 1); }

 private:
  int lane_;
};

}  // namespace fastrobust::cuda
