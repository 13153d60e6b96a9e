// Noisy copies: a thread four elements, or a block a copy where the draw is divided by its norm.
#include "../common/noise.h"

#include "../common/element.h"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct alignas(sizeof(T) * 4 < 16 ? sizeof(T) * 4 : 16) Pack {
  T v[4];
};

template <class Out, class T>
__device__ __forceinline__ Out rounded(T v) {
  if constexpr (std::is_same_v<Out, double> || std::is_same_v<Out, float>)
    return static_cast<Out>(v);
  else
    return store<Out>(static_cast<float>(v));
}

// What belongs to a slot.
struct Slot {
  int64_t at, image;  // the image is -1 where it is out of range
  uint32_t copy, index;
  double scale;

  __device__ __forceinline__ Slot(const NoisyCopies& a, int64_t slot) {
    at = slot;
    image = a.image[slot] >= 0 && a.image[slot] < a.images ? a.image[slot] : -1;
    copy = static_cast<uint32_t>(a.copy[slot]);
    index = image < 0 ? 0 : static_cast<uint32_t>(a.index[image]);
    scale = a.scale_each ? a.scale_each[slot] : a.scale;
  }
};

// Four elements of a draw: in x's type, or, for splitting, in double.
template <class T>
__device__ __forceinline__ Pack<T> draw(const NoisyCopies& a, const Slot& slot, uint32_t block) {
  Pack<T> z;
  if constexpr (sizeof(T) == 4) {
    uint32_t words[4];
    philox_lanes<Scalar>(a.seed, block, slot.copy, slot.index, kNoise, words);
    four_draws<Scalar>(a.kind, words, z.v);
  } else {
    const Draw key{a.seed, slot.copy, slot.index, 1.0, kNoise};
    const Four four = a.kind == NoiseKind::normal    ? direction_block<Norm::l2>(key, block)
                      : a.kind == NoiseKind::laplace ? direction_block<Norm::l1>(key, block)
                                                     : direction_block<Norm::linf>(key, block);
    for (int k = 0; k < 4; ++k) z.v[k] = four.v[k];
  }
  return z;
}

template <class In, class Out, class T>
__device__ __forceinline__ Out noisy(const NoisyCopies& a, const Slot& slot, In x, T z, T scale) {
  if (slot.image < 0) return rounded<Out>(std::numeric_limits<T>::quiet_NaN());
  if (a.kind == NoiseKind::split) return rounded<Out>(split(x, scale, z));
  return rounded<Out>(static_cast<T>(x) + scale * z);
}

// kWhole: samples are whole packs of four, each aligned and in order.
template <class In, class Out, bool kWhole, class T>
__device__ __forceinline__ void write(const NoisyCopies& a, const Slot& slot, int64_t block, const Pack<T>& z,
                                      double factor) {
  const In* x = static_cast<const In*>(a.x) + (slot.image < 0 ? 0 : slot.image) * a.dim;
  Out* out = static_cast<Out*>(a.out) + slot.at * a.dim;
  const T scale = static_cast<T>(factor);
  if constexpr (kWhole) {
    const Pack<In> clean = *reinterpret_cast<const Pack<In>*>(x + 4 * block);
    Pack<Out> to;
    for (int k = 0; k < 4; ++k) to.v[k] = noisy<In, Out>(a, slot, clean.v[k], z.v[k], scale);
    *reinterpret_cast<Pack<Out>*>(out + 4 * block) = to;
  } else {
    const uint32_t dim = static_cast<uint32_t>(a.dim), channels = static_cast<uint32_t>(a.channels),
                   pixels = dim / channels;
    for (int k = 0; k < 4; ++k) {
      const uint32_t i = 4 * static_cast<uint32_t>(block) + k,
                     at = channels > 1 ? i % pixels * channels + i / pixels : i;
      if (i < dim) out[at] = noisy<In, Out>(a, slot, x[at], z.v[k], scale);
    }
  }
}

template <class In, class Out, bool kWhole, bool kSplit>
__global__ void __launch_bounds__(kThreads) fours(const NoisyCopies a) {
  using T = std::conditional_t<kSplit, double, In>;
  const int64_t blocks = (a.dim + 3) / 4, total = a.slots * blocks, step = static_cast<int64_t>(gridDim.x) * kThreads;
  const bool narrow = total >> 32 == 0;  // 64-bit division is many times slower than 32-bit
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const int64_t at = narrow ? static_cast<uint32_t>(i) / static_cast<uint32_t>(blocks) : i / blocks;
    const Slot slot(a, at);
    const int64_t block = i - at * blocks;
    write<In, Out, kWhole>(a, slot, block, draw<T>(a, slot, static_cast<uint32_t>(block)), slot.scale);
  }
}

// Draws twice, first for the norm, rather than store what it has drawn.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads) spheres(const NoisyCopies a) {
  FR_SHARED(double, scratch);
  const Block team(scratch);
  const int64_t blocks = (a.dim + 3) / 4;
  for (int64_t at = blockIdx.x; at < a.slots; at += gridDim.x) {
    const Slot slot(a, at);
    const auto over = [&](int64_t block, const auto& join) {
      const Pack<In> z = draw<In>(a, slot, static_cast<uint32_t>(block));
      double v = 0.0;
      for (int k = 0; k < 4; ++k) v = 4 * block + k < a.dim ? join(v, static_cast<double>(z.v[k])) : v;
      return v;
    };
    double norm;
    if (a.norm == Norm::linf) {
      norm = team.max(blocks, [&](int64_t b) { return over(b, [](double v, double z) { return fmax(v, fabs(z)); }); });
    } else if (a.norm == Norm::l1) {
      norm = team.sum(blocks, [&](int64_t b) { return over(b, [](double v, double z) { return v + fabs(z); }); });
    } else {
      norm = sqrt(team.sum(blocks, [&](int64_t b) { return over(b, [](double v, double z) { return v + z * z; }); }));
    }
    team.each(blocks, [&](int64_t b) {
      write<In, Out, false>(a, slot, b, draw<In>(a, slot, static_cast<uint32_t>(b)), slot.scale / norm);
    });
  }
}

template <class In, class Out>
Status launch(const NoisyCopies& a, void* stream) {
  if (a.sphere) {
    int threads = kWarp;  // from the sample's size alone: results must not depend on the batch
    while (threads < kThreads && threads * 16 < a.dim) threads *= 2;
    FR_LAUNCH((spheres<In, Out>), blocks_for(a.slots), threads, Block::shared_bytes(threads), stream, a);
    return launched();
  }
  const unsigned grid = blocks_for((a.slots * ((a.dim + 3) / 4) + kThreads - 1) / kThreads);
  const auto aligned = [](const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; };
  const bool whole =
      a.dim % 4 == 0 && a.channels == 1 && aligned(a.x, alignof(Pack<In>)) && aligned(a.out, alignof(Pack<Out>));
  if (a.kind == NoiseKind::split) {
    FR_LAUNCH((fours<In, Out, false, true>), grid, kThreads, 0, stream, a);
  } else if (whole) {
    FR_LAUNCH((fours<In, Out, true, false>), grid, kThreads, 0, stream, a);
  } else {
    FR_LAUNCH((fours<In, Out, false, false>), grid, kThreads, 0, stream, a);
  }
  return launched();
}

template <class In>
Status launch_for(const NoisyCopies& a, void* stream) {
  if (a.out_dtype == a.dtype) return launch<In, In>(a, stream);
  if (a.out_dtype == DType::bf16) return launch<In, BFloat16>(a, stream);
  return a.out_dtype == DType::f16 ? launch<In, Half>(a, stream) : Status::bad_dtype;
}

}  // namespace

Status noisy_copies(const NoisyCopies& a, void* stream) {
  if (a.slots * a.dim == 0) return Status::ok;
  if (a.dim >> 31 != 0) return Status::bad_value;
  if (a.dtype == DType::f32) return launch_for<float>(a, stream);
  return a.dtype == DType::f64 ? launch_for<double>(a, stream) : Status::bad_dtype;
}

}  // namespace fastrobust::cuda
