// Linear functions between lines for one instruction set: a thread a row forwards, a piece of a sample backwards.
#include <algorithm>

#include "../../common/math.h"
#include "../parallel.h"
#include "fastrobust/crown.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kPiece = 512;

// first ? a : b, by bits: both are read whatever is chosen, or loops would not be vectorised.
template <class T>
FR_HD T pick(bool first, T a, T b) {
  using I = typename Bits<T>::type;
  const I mask = -static_cast<I>(first);
  return bit_cast<T>((bit_cast<I>(a) & mask) | (bit_cast<I>(b) & ~mask));
}

template <class T>
Status forward(const CrownLines& a, int threads) {
  const T *w = static_cast<const T*>(a.weight), *low_slope = static_cast<const T*>(a.low_slope),
          *low = static_cast<const T*>(a.low), *high_slope = static_cast<const T*>(a.high_slope),
          *high = static_cast<const T*>(a.high);
  T* moved = static_cast<T*>(a.moved);
  in_team(
      team_for(threads, a.batch * a.rows * a.size), a.batch * a.rows, [] { return 0; },
      [&](int, int64_t row) {
        const int64_t at = row * a.size, line = row / a.rows * a.size;
        double total = 0;
        for (int64_t begin = 0; begin < a.size; begin += kPiece) {
          const int64_t end = std::min(a.size, begin + kPiece);
          T lane[kLanes] = {};  // a piece's sums are of type T
          int64_t i = begin;
          const auto one = [&](int64_t k, int l) __attribute__((always_inline)) {
            const T v = w[at + k];
            moved[at + k] = v * pick(v > 0, low_slope[line + k], high_slope[line + k]);
            lane[l] += v * pick(v > 0, low[line + k], high[line + k]);
          };
          for (; i + kLanes <= end; i += kLanes) {
#pragma omp simd
            for (int l = 0; l < kLanes; ++l) one(i + l, l);
          }
          for (; i < end; ++i) one(i, 0);
          for (int l = 0; l < kLanes; ++l) total += lane[l];
        }
        a.constant[row] = total;
      });
  return Status::ok;
}

template <class T>
Status backward(const CrownLines& a, int threads) {
  const T *w = static_cast<const T*>(a.weight), *low_slope = static_cast<const T*>(a.low_slope),
          *low = static_cast<const T*>(a.low), *high_slope = static_cast<const T*>(a.high_slope),
          *high = static_cast<const T*>(a.high);
  const T* g = static_cast<const T*>(a.grad_moved);
  T *by_weight = static_cast<T*>(a.grad_weight), *by_low_slope = static_cast<T*>(a.grad_low_slope),
    *by_low = static_cast<T*>(a.grad_low), *by_high_slope = static_cast<T*>(a.grad_high_slope),
    *by_high = static_cast<T*>(a.grad_high);
  const int64_t pieces = (a.size + kPiece - 1) / kPiece;
  in_team(
      team_for(threads, a.batch * a.rows * a.size), a.batch * pieces, [] { return 0; },
      [&](int, int64_t unit) {
        const int64_t sample = unit / pieces, begin = unit % pieces * kPiece, count = std::min(kPiece, a.size - begin);
        const int64_t line = sample * a.size + begin;
        T sums[4][kPiece];
        for (int k = 0; k < 4; ++k) {
          for (int64_t i = 0; i < count; ++i) sums[k][i] = 0;
        }
        for (int64_t r = 0; r < a.rows; ++r) {
          const int64_t row = sample * a.rows + r, at = row * a.size + begin;
          const T c = static_cast<T>(a.grad_constant[row]);
#pragma omp simd
          for (int64_t i = 0; i < count; ++i) {
            const T v = w[at + i], slope = g[at + i];
            by_weight[at + i] = slope * pick(v > 0, low_slope[line + i], high_slope[line + i]) +
                                c * pick(v > 0, low[line + i], high[line + i]);
            const T plus = pick(v > 0, v, T(0)), minus = pick(v > 0, T(0), v);
            sums[0][i] += slope * plus;
            sums[1][i] += c * plus;
            sums[2][i] += slope * minus;
            sums[3][i] += c * minus;
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          by_low_slope[line + i] = sums[0][i];
          by_low[line + i] = sums[1][i];
          by_high_slope[line + i] = sums[2][i];
          by_high[line + i] = sums[3][i];
        }
      });
  return Status::ok;
}

template <bool kBackward>
Status lines(const CrownLines& a, int threads) {
  if (a.dtype == DType::f32) return kBackward ? backward<float>(a, threads) : forward<float>(a, threads);
  if (a.dtype == DType::f64) return kBackward ? backward<double>(a, threads) : forward<double>(a, threads);
  return Status::bad_dtype;
}

}  // namespace

extern const Crown crown;
const Crown crown{lines<false>, lines<true>};

}  // namespace fastrobust::cpu::FR_ISA
