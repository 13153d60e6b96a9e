// Linear layers of interval propagation for one instruction set: W p and |W| r of one reading of W.
//
// Tiles of kRows x kColumns sums stay in registers. Forwards they run along the features, from pieces of W and of the
// samples that stay in the caches; backwards vectors are features, whose panels of W, or of the samples, are packed.
#include <algorithm>
#include <cstring>

#include "../parallel.h"
#include "fastrobust/interval.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVector = 16, kRows = 6, kColumns = 4;
#elif defined(__AVX__)
constexpr int kVector = 8, kRows = 3, kColumns = 4;
#else
constexpr int kVector = 4, kRows = 3, kColumns = 4;
#endif
constexpr int kPanel = kVector * kColumns;  // features of a panel
constexpr int64_t kPiece = 1024;            // features summed at a time
typedef float Vec __attribute__((vector_size(4 * kVector), may_alias, aligned(4)));
typedef int32_t Mask __attribute__((vector_size(4 * kVector), may_alias));
#define FR_ALWAYS inline __attribute__((always_inline))

FR_ALWAYS Vec read(const float* p) { return *reinterpret_cast<const Vec*>(p); }
FR_ALWAYS void write(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
FR_ALWAYS Vec magnitude(Vec v) { return (Vec)((Mask)v & 0x7fffffff); }
FR_ALWAYS float magnitude(float v) { return v < 0 ? -v : v; }
// s with the sign of w, 0 where w is 0.
FR_ALWAYS Vec signed_by(Vec s, Vec w) {
  const Mask sign = (Mask)w & static_cast<int32_t>(0x80000000u);
  return (Vec)(((Mask)s ^ sign) & (w != 0.0f));
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};
// f(Count<count>{}) for count in 1 .. kMost.
template <int kMost, class F>
FR_ALWAYS void with_count(int64_t count, const F& f) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, f);
  }
  f(Count<kMost>{});
}

// out[i][j] += sum over n features of x[i] and w[j], or |w[j]|.
template <int kI, int kJ, bool kAbsolute>
FR_ALWAYS void along(const float* x, int64_t x_stride, const float* w, int64_t w_stride, int64_t n, float* out,
                     int64_t out_stride) {
  Vec sums[kI][kJ] = {};
  int64_t k = 0;
  for (; k + kVector <= n; k += kVector) {
    Vec columns[kJ];
#pragma GCC unroll 8
    for (int j = 0; j < kJ; ++j) {
      const Vec v = read(w + j * w_stride + k);
      columns[j] = kAbsolute ? magnitude(v) : v;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kI; ++i) {
      const Vec v = read(x + i * x_stride + k);
#pragma GCC unroll 8
      for (int j = 0; j < kJ; ++j) sums[i][j] += v * columns[j];
    }
  }
  for (int i = 0; i < kI; ++i) {
    for (int j = 0; j < kJ; ++j) {
      float total = 0;
      for (int l = 0; l < kVector; ++l) total += sums[i][j][l];
      for (int64_t t = k; t < n; ++t) {
        const float v = w[j * w_stride + t];
        total += x[i * x_stride + t] * (kAbsolute ? magnitude(v) : v);
      }
      out[i * out_stride + j] += total;
    }
  }
}

// Samples and how many there are: points first, then radii.
struct Side {
  const float* x;
  int64_t rows;
  float* out;
};

template <bool kAbsolute>
void piece(const IntervalLinear& a, const Side& side, int64_t column, int64_t columns, int64_t begin, int64_t n) {
  with_count<kColumns>(columns, [&](auto j) {
    for (int64_t row = 0; row < side.rows; row += kRows) {
      with_count<kRows>(std::min<int64_t>(kRows, side.rows - row), [&](auto i) {
        along<decltype(i)::value, decltype(j)::value, kAbsolute>(side.x + row * a.features + begin, a.features,
                                                                 a.weight + column * a.features + begin, a.features, n,
                                                                 side.out + row * a.outputs + column, a.outputs);
      });
    }
  });
}

Status linear(const IntervalLinear& a, int threads) {
  const Side points{a.points, a.rows, a.out}, radius{a.radius, a.boxes, a.reach};
  const int64_t blocks = (a.outputs + kColumns - 1) / kColumns;
  for (const Side& side : {points, radius}) memset(side.out, 0, sizeof(float) * side.rows * a.outputs);
  // A thread's blocks of outputs, piece by piece: the piece of the samples is theirs all, and stays in its cache.
  const int64_t parts = std::min<int64_t>(blocks, threads);
  in_team(
      threads, parts, [] { return 0; },
      [&](int, int64_t part) {
        const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
        for (int64_t begin = 0; begin < a.features; begin += kPiece) {
          const int64_t n = std::min(kPiece, a.features - begin);
          for (int64_t block = first; block < last; ++block) {
            const int64_t column = block * kColumns, columns = std::min<int64_t>(kColumns, a.outputs - column);
            piece<false>(a, points, column, columns, begin, n);
            piece<true>(a, radius, column, columns, begin, n);
          }
        }
      });
  return Status::ok;
}

// Rows x kPanel features from `begin` of a matrix, 0 past its end.
void pack(const float* from, int64_t rows, int64_t features, int64_t begin, float* to) {
  const int64_t n = std::min<int64_t>(kPanel, features - begin);
  for (int64_t row = 0; row < rows; ++row) {
    memcpy(to + row * kPanel, from + row * features + begin, sizeof(float) * n);
    for (int64_t k = n; k < kPanel; ++k) to[row * kPanel + k] = 0;
  }
}

void put(const Vec (&sums)[kColumns], float* to, int64_t n) {
  if (n >= kPanel) {
    for (int c = 0; c < kColumns; ++c) write(to + c * kVector, sums[c]);
    return;
  }
  float row[kPanel];
  for (int c = 0; c < kColumns; ++c) write(row + c * kVector, sums[c]);
  memcpy(to, row, sizeof(float) * n);
}

// sums[i] += sum over `count` of factor[i * step_i + m * step_m] times row m of the panel, or its magnitudes.
template <int kI, bool kAbsolute>
FR_ALWAYS void across(const float* factor, int64_t step_i, int64_t step_m, const float* panel, int64_t count,
                      Vec (&sums)[kI][kColumns]) {
  for (int64_t m = 0; m < count; ++m) {
    Vec row[kColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const Vec v = read(panel + m * kPanel + c * kVector);
      row[c] = kAbsolute ? magnitude(v) : v;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kI; ++i) {
      const float f = factor[i * step_i + m * step_m];
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) sums[i][c] += f * row[c];
    }
  }
}

template <bool kAbsolute>
void inputs_back(const IntervalLinear& a, const float* grad, int64_t rows, const float* panel, int64_t begin,
                 float* out) {
  for (int64_t row = 0; row < rows; row += kRows) {
    with_count<kRows>(std::min<int64_t>(kRows, rows - row), [&](auto count) {
      constexpr int kI = decltype(count)::value;
      Vec sums[kI][kColumns] = {};
      across<kI, kAbsolute>(grad + row * a.outputs, a.outputs, 1, panel, a.outputs, sums);
      for (int i = 0; i < kI; ++i) put(sums[i], out + (row + i) * a.features + begin, a.features - begin);
    });
  }
}

void weights_back(const IntervalLinear& a, const float* points, const float* radius, int64_t begin) {
  const int64_t n = std::min<int64_t>(kPanel, a.features - begin);
  for (int64_t output = 0; output < a.outputs; output += kRows) {
    with_count<kRows>(std::min<int64_t>(kRows, a.outputs - output), [&](auto count) {
      constexpr int kI = decltype(count)::value;
      Vec of_points[kI][kColumns] = {}, of_radius[kI][kColumns] = {};
      across<kI, false>(a.grad_out + output, 1, a.outputs, points, a.rows, of_points);
      across<kI, false>(a.grad_reach + output, 1, a.outputs, radius, a.boxes, of_radius);
      for (int i = 0; i < kI; ++i) {
        const int64_t at = (output + i) * a.features + begin;
        float weight[kPanel] = {};
        memcpy(weight, a.weight + at, sizeof(float) * n);
        for (int c = 0; c < kColumns; ++c) {
          of_points[i][c] += signed_by(of_radius[i][c], read(weight + c * kVector));
        }
        put(of_points[i], a.grad_weight + at, n);
      }
    });
  }
}

Status linear_backward(const IntervalLinear& a, int threads) {
  const int64_t rows = std::max(a.outputs, a.rows + a.boxes), panels = (a.features + kPanel - 1) / kPanel;
  // Scratch is counted in doubles.
  return for_each(threads, panels, 1, rows * kPanel / 2, [&](const Scratch& scratch, int64_t number) {
    float* panel = reinterpret_cast<float*>(scratch.at);
    const int64_t begin = number * kPanel;
    if (a.grad_points || a.grad_radius) {
      pack(a.weight, a.outputs, a.features, begin, panel);
      inputs_back<false>(a, a.grad_out, a.rows, panel, begin, a.grad_points);
      inputs_back<true>(a, a.grad_reach, a.boxes, panel, begin, a.grad_radius);
    }
    if (a.grad_weight) {
      pack(a.points, a.rows, a.features, begin, panel);
      pack(a.radius, a.boxes, a.features, begin, panel + a.rows * kPanel);
      weights_back(a, panel, panel + a.rows * kPanel, begin);
    }
  });
}

}  // namespace

extern const IntervalLayers interval_layers;
const IntervalLayers interval_layers{linear, linear_backward};

}  // namespace fastrobust::cpu::FR_ISA
