// logit_loss for one instruction set: a thread a row.
#include "../../common/logit.h"

namespace fastrobust::cpu::FR_ISA {

struct RowThread {
  static constexpr int kLanes = 16;

  template <class F, class Skip>
  FR_HD int64_t top(int64_t n, const F& f, const Skip& skip) const {
    int64_t best = -1;
    decltype(f(0)) value{};
    for (int64_t i = 0; i < n; ++i) {
      const auto v = f(i);
      if (!skip(i) && (best < 0 || v > value)) {
        best = i;
        value = v;
      }
    }
    return best;
  }

  template <class F>
  FR_HD bool any(int64_t n, const F& f) const {
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = 0; i < n; ++i) found |= f(i) ? 1 : 0;
    return found != 0;
  }

  // Element i is added to lane i % 16, and the lanes in a fixed order: the vector width does not matter.
  template <class F>
  FR_HD auto sum(int64_t n, const F& f) const {
    decltype(f(0)) lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) lane[l] += f(i + l);
    }
    const int rest = static_cast<int>(n - i);
#pragma omp simd
    for (int l = 0; l < rest; ++l) lane[l] += f(i + l);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
    }
    return lane[0];
  }

  template <class F>
  FR_HD void each(int64_t n, const F& f) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  FR_HD bool leads() const { return true; }
  FR_HD void count(int32_t* counter) const {
#pragma omp atomic
    ++*counter;
  }
};

template <class S>
void logit_rows(const LogitLoss& a, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && a.batch * a.classes > 4096)
  for (int64_t row = 0; row < a.batch; ++row) logit_row<RowThread, S>(RowThread{}, a, row);
}

Status logit_loss(const LogitLoss& a, int threads) {
  switch (a.dtype) {
    case DType::f32:
      logit_rows<float>(a, threads);
      return Status::ok;
    case DType::f64:
      logit_rows<double>(a, threads);
      return Status::ok;
    case DType::bf16:
      logit_rows<BFloat16>(a, threads);
      return Status::ok;
    case DType::f16:
      logit_rows<Half>(a, threads);
      return Status::ok;
  }
  return Status::bad_dtype;
}

}  // namespace fastrobust::cpu::FR_ISA
