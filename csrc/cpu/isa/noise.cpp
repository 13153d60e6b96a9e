// Noisy copies for one instruction set: draws into memory that stays in the cache, then one pass over the result.
#include "fastrobust/noise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../../common/element.h"
#include "../draws.h"
#include "../noise_lanes.h"
#include "../parallel.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

constexpr int64_t kPiece = 256;  // blocks of four elements, of a row or of several

// What is worked on at a time: a piece of a row, or whole rows.
struct Units {
  int64_t blocks, piece, pieces, rows, count;

  Units(const NoisyCopies& a, bool whole) {
    blocks = (a.dim + 3) / 4;
    piece = whole ? blocks : std::min(blocks, kPiece);
    pieces = (blocks + piece - 1) / piece;
    rows = pieces > 1 ? 1 : (kPiece + blocks - 1) / blocks;
    count = (a.slots + rows - 1) / rows * pieces;
  }
};

struct Unit {
  int64_t first, rows, block, blocks;  // blocks `block` .. of each of its slots

  Unit(const NoisyCopies& a, const Units& units, int64_t i) {
    first = i / units.pieces * units.rows;
    rows = std::min(units.rows, a.slots - first);
    block = i % units.pieces * units.piece;
    blocks = std::min(units.piece, units.blocks - block);
  }
};

bool valid(const NoisyCopies& a, int64_t slot) { return a.image[slot] >= 0 && a.image[slot] < a.images; }

// The counters of a slot; anything where its image is out of range.
struct Key {
  uint32_t copy, index;

  Key(const NoisyCopies& a, int64_t slot)
      : copy(static_cast<uint32_t>(a.copy[slot])),
        index(valid(a, slot) ? static_cast<uint32_t>(a.index[a.image[slot]]) : 0) {}
};

// Lane l of a vector draws its block number place(l), so that fours need no move between quarters of a vector to stand
// in order.
constexpr int place(int l) { return Lanes::kCount / 4 * (l % 4) + l / 4; }

// z[k] lane l to `to`, element k of block place(l).
FR_HD void store_fours(const Lanes::Vec (&z)[4], float* to) {
#if defined(__GNUC__) && !defined(__clang__)
  Lanes::Mask low, high, even, odd;  // of two vectors, within quarters
  for (int l = 0; l < Lanes::kCount; ++l) {
    const int quarter = l / 4 * 4, i = l % 4, other = Lanes::kCount;
    low[l] = quarter + i / 2 + i % 2 * other;
    high[l] = quarter + 2 + i / 2 + i % 2 * other;
    even[l] = quarter + i % 2 + i / 2 * other;
    odd[l] = quarter + 2 + i % 2 + i / 2 * other;
  }
  const Lanes::Vec a = __builtin_shuffle(z[0], z[1], low), b = __builtin_shuffle(z[0], z[1], high),
                   c = __builtin_shuffle(z[2], z[3], low), d = __builtin_shuffle(z[2], z[3], high);
  const Lanes::Vec fours[4] = {__builtin_shuffle(a, c, even), __builtin_shuffle(a, c, odd),
                               __builtin_shuffle(b, d, even), __builtin_shuffle(b, d, odd)};
  memcpy(to, fours, sizeof(fours));
#else
  for (int l = 0; l < Lanes::kCount; ++l) {
    for (int k = 0; k < 4; ++k) to[4 * place(l) + k] = z[k][l];
  }
#endif
}

// All draws of a unit, row by row, four to a block; up to a vector more is written.
template <NoiseKind kKind>
void fill(const NoisyCopies& a, const Unit& unit, float* to) {
  int64_t slot = unit.first, block = 0;
  for (int64_t left = unit.rows * unit.blocks; left > 0; left -= Lanes::kCount, to += 4 * Lanes::kCount) {
    Lanes::Words c0{}, c1{}, c2{};
    if (unit.rows == 1 || block + Lanes::kCount <= unit.blocks) {
      const Key key(a, slot);
      for (int l = 0; l < Lanes::kCount; ++l) c0[l] = static_cast<uint32_t>(place(l));
      c0 += static_cast<uint32_t>(unit.block + block);
      c1 += key.copy;
      c2 += key.index;
      block += Lanes::kCount;
    } else {
      uint32_t of[3][Lanes::kCount] = {};
      for (int64_t i = 0; i < std::min<int64_t>(left, Lanes::kCount); ++i, ++block) {
        if (block == unit.blocks) ++slot, block = 0;
        const Key key(a, slot);
        of[0][i] = static_cast<uint32_t>(block), of[1][i] = key.copy, of[2][i] = key.index;
      }
      for (int l = 0; l < Lanes::kCount; ++l) c0[l] = of[0][place(l)], c1[l] = of[1][place(l)], c2[l] = of[2][place(l)];
    }
    Lanes::Words words[4];
    philox_lanes<Lanes>(a.seed, c0, c1, c2, kNoise, words);
    Lanes::Vec z[4];
    four_draws<Lanes>(kKind, words, z);
    store_fours(z, to);
  }
}

template <NoiseKind kKind>
void fill(const NoisyCopies& a, const Unit& unit, double* to) {
  for (int64_t row = 0; row < unit.rows; ++row) {
    const Key key(a, unit.first + row);
    direction(direction_of(kKind), {a.seed, key.copy, key.index, 1.0, kNoise}, a.dim, to + 4 * unit.blocks * row);
  }
}

template <class T>
double norm_of(Norm norm, int64_t n, const T* z) {
  double sum = 0;
  T most = 0;
  switch (norm) {
    case Norm::l2:
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(z[i]) * z[i];
      return std::sqrt(sum);
    case Norm::l1:
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(std::fabs(z[i]));
      return sum;
    case Norm::linf:
#pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < n; ++i) {
        const T v = std::fabs(z[i]);
        most = most > v ? most : v;
      }
      return most;
  }
  return 0;
}

template <class Out, class T>
FR_HD Out rounded(T v) {
  if constexpr (std::is_same_v<Out, double> || std::is_same_v<Out, float>)
    return static_cast<Out>(v);
  else
    return store<Out>(static_cast<float>(v));
}

// n elements of a copy from element `begin` on, of x, whose draws begin at z.
template <NoiseKind kKind, class In, class Out, class T>
void finish(const NoisyCopies& a, int64_t slot, int64_t begin, int64_t n, const T* z) {
  Out* out = static_cast<Out*>(a.out) + slot * a.dim + begin;
  if (!valid(a, slot)) {
    for (int64_t i = 0; i < n; ++i) out[i] = rounded<Out>(std::numeric_limits<T>::quiet_NaN());
    return;
  }
  const In* x = static_cast<const In*>(a.x) + a.image[slot] * a.dim + begin;
  const double wide = a.scale_each ? a.scale_each[slot] : a.scale;
  const T scale = static_cast<T>(a.sphere ? wide / norm_of(a.norm, n, z) : wide);
  const auto noisy = [=](int64_t i, int64_t from) FR_LAMBDA {
    if constexpr (kKind == NoiseKind::split)
      return rounded<Out>(split(x[i], scale, z[from]));
    else
      return rounded<Out>(x[i] + scale * z[from]);
  };
  if (a.channels > 1) {
    const int64_t pixels = n / a.channels;
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t c = 0; c < a.channels; ++c) out[p * a.channels + c] = noisy(p * a.channels + c, c * pixels + p);
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = noisy(i, i);
  }
}

template <NoiseKind kKind, class In, class Out>
Status copies(const NoisyCopies& a, int threads) {
  // Splitting compares: x with a number of 32 bits.
  using T = std::conditional_t<kKind == NoiseKind::split, double, In>;
  const Units units(a, a.sphere || a.channels > 1 || std::is_same_v<T, double>);
  const int64_t room = 4 * (units.rows * units.piece + Lanes::kCount);
  return for_each(team_for(threads, a.slots * a.dim), units.count, 1, room, [&](const Scratch& scratch, int64_t i) {
    T* z = reinterpret_cast<T*>(scratch.at);
    const Unit unit(a, units, i);
    fill<kKind>(a, unit, z);
    for (int64_t row = 0; row < unit.rows; ++row) {
      const int64_t begin = 4 * unit.block, n = std::min(4 * unit.blocks, a.dim - begin);
      finish<kKind, In, Out>(a, unit.first + row, begin, n, z + 4 * unit.blocks * row);
    }
  });
}

template <class In, class Out>
Status of_kind(const NoisyCopies& a, int threads) {
  switch (a.kind) {
    case NoiseKind::normal:
      return copies<NoiseKind::normal, In, Out>(a, threads);
    case NoiseKind::uniform:
      return copies<NoiseKind::uniform, In, Out>(a, threads);
    case NoiseKind::laplace:
      return copies<NoiseKind::laplace, In, Out>(a, threads);
    case NoiseKind::split:
      return copies<NoiseKind::split, In, Out>(a, threads);
  }
  return Status::bad_value;
}

template <class In>
Status of_input(const NoisyCopies& a, int threads) {
  if (a.out_dtype == a.dtype) return of_kind<In, In>(a, threads);
  if (a.out_dtype == DType::bf16) return of_kind<In, BFloat16>(a, threads);
  return a.out_dtype == DType::f16 ? of_kind<In, Half>(a, threads) : Status::bad_dtype;
}

}  // namespace

Status noisy_copies(const NoisyCopies& a, int threads) {
  if (a.slots * a.dim == 0) return Status::ok;
  if (a.dtype == DType::f32) return of_input<float>(a, threads);
  return a.dtype == DType::f64 ? of_input<double>(a, threads) : Status::bad_dtype;
}

}  // namespace fastrobust::cpu::FR_ISA
