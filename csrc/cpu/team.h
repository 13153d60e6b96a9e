// One CPU thread as the team that works on a sample (see common/rows.h). Included once per instruction set.
#pragma once
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "../common/rows.h"
#include "draws.h"

namespace fastrobust::cpu::FR_ISA {

// On x86 some loops run with the processor rounding down, which their formulas then need not work out. Nothing may move
// across the change of mode: the loops stand in functions of their own, and CMake asks for -frounding-math.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
using Down = ByMode;
#define FR_ROUNDING __attribute__((noinline, noclone))
struct RoundDown {
  unsigned before = _mm_getcsr();
  RoundDown() { _mm_setcsr((before & ~0x6000u) | 0x2000u); }
  ~RoundDown() { _mm_setcsr(before); }
  RoundDown(const RoundDown&) = delete;
  RoundDown& operator=(const RoundDown&) = delete;
};
#else
using Down = ByError;
#define FR_ROUNDING
struct RoundDown {};
#endif

// Sums are kept in 16 lanes, element i in lane i % 16, and the lanes are added in a fixed order: the result depends
// on nothing but the data, whatever the vector width.
class Thread {
 public:
  using Rounding = Down;

  // `scratch` holds the slots that are kept, `stride` doubles each.
  Thread(double* scratch, int64_t stride) : scratch_(scratch), stride_(stride) {}

  struct Kept {
    const double* at;
    FR_HD double operator()(int64_t i) const { return at[i]; }
  };

  template <class F>
  FR_HD Kept keep(int slot, int64_t n, const F& f) const {
    double* to = scratch_ + slot * stride_;
    each(n, [=](int64_t i) FR_LAMBDA { to[i] = f(i); });
    return {to};
  }

  template <Norm kNorm>
  Kept direction(int64_t n, const Draw& key) const {
    FR_ISA::direction(kNorm, key, n, scratch_);
    return {scratch_};
  }

  template <class F>
  FR_HD double sum_kept(int64_t n, const Kept& kept, const F& f) const {
    return sum(n, [=](int64_t i) FR_LAMBDA { return f(kept(i)); });
  }

  template <class F>
  FR_HD void each_kept(int64_t n, const Kept& kept, const F& f) const {  // rounding down
    each_down(n, [=](int64_t i) FR_LAMBDA { f(i, kept(i)); });
  }

  template <class F>
  FR_HD double sum(int64_t n, const F& f) const {
    alignas(64) double v[kLanes];
    Lanes acc;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) v[l] = f(i + l);
      acc.add(v);
    }
    if (i < n) {
      for (int l = 0; l < kLanes; ++l) v[l] = 0.0;
      for (int l = 0; i + l < n; ++l) v[l] = f(i + l);
      acc.add(v);
    }
    return acc.total();
  }

  template <class F>
  FR_HD Pair sum2(int64_t n, const F& f) const {
    alignas(64) double a[kLanes], b[kLanes];
    Lanes first, second;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const Pair p = f(i + l);
        a[l] = p.a;
        b[l] = p.b;
      }
      first.add(a);
      second.add(b);
    }
    if (i < n) {
      for (int l = 0; l < kLanes; ++l) a[l] = b[l] = 0.0;
      for (int l = 0; i + l < n; ++l) {
        const Pair p = f(i + l);
        a[l] = p.a;
        b[l] = p.b;
      }
      first.add(a);
      second.add(b);
    }
    return {first.total(), second.total()};
  }

  template <class F>
  FR_HD double max(int64_t n, const F& f) const {  // of values >= 0
    double m = 0.0;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; ++i) {
      const double v = f(i);
      m = v > m ? v : m;
    }
    return m;
  }

  template <class F>
  FR_HD void each(int64_t n, const F& f) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  template <class F>
  FR_HD void each_down(int64_t n, const F& f) const {
    [[maybe_unused]] const RoundDown mode;
    in_mode(n, f);
  }

 private:
  static constexpr int kLanes = 16;

  // The lanes in registers of this instruction set; wider vector types than it has make poor code.
#if defined(__AVX512F__)
  static constexpr int kWidth = 8;
#elif defined(__AVX__)
  static constexpr int kWidth = 4;
#else
  static constexpr int kWidth = 2;
#endif
  typedef double Lane __attribute__((vector_size(8 * kWidth), may_alias));

  struct Lanes {
    Lane lane[kLanes / kWidth] = {};
    FR_HD void add(const double* v) {
      for (int k = 0; k < kLanes / kWidth; ++k) lane[k] += *reinterpret_cast<const Lane*>(v + kWidth * k);
    }
    FR_HD double total() const {
      double s[kLanes];
      for (int l = 0; l < kLanes; ++l) s[l] = lane[l / kWidth][l % kWidth];
      for (int n = kLanes / 2; n > 0; n /= 2) {
        for (int l = 0; l < n; ++l) s[l] += s[l + n];
      }
      return s[0];
    }
  };

  template <class F>
  FR_ROUNDING static void in_mode(int64_t n, const F& given) {
    const F f = given;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  double* scratch_;
  int64_t stride_;
};

}  // namespace fastrobust::cpu::FR_ISA
