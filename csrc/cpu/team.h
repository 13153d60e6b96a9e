// One CPU thread as the team that works on a sample (see common/rows.h). Included once per instruction set.
#pragma once
#include "../common/rows.h"

namespace fastrobust::cpu::FR_ISA {

// Sums are kept in 32 lanes, element i in lane i % 32, and the lanes are added in a fixed order: the result depends
// on nothing but the data, whatever the vector width.
struct Thread {
  static constexpr int kLanes = 32;
  typedef double Lane __attribute__((vector_size(64), may_alias));

  struct Lanes {
    Lane lane[4] = {};
    FR_HD void add(const double* v) {
      for (int k = 0; k < 4; ++k) lane[k] += *reinterpret_cast<const Lane*>(v + 8 * k);
    }
    FR_HD double total() const {
      const Lane s = (lane[0] + lane[1]) + (lane[2] + lane[3]);
      return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    }
  };

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
      for (int l = 0; l < kLanes; ++l) v[l] = i + l < n ? f(i + l) : 0.0;
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
      for (int l = 0; l < kLanes; ++l) {
        const Pair p = i + l < n ? f(i + l) : Pair{0.0, 0.0};
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
};

}  // namespace fastrobust::cpu::FR_ISA
