// logit_loss for one instruction set: a thread a row.
#include "../../common/logit.h"

#include "../parallel.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

constexpr int64_t kLanes = 16;  // rows are padded to a multiple of this

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

template <class Z>
class RowThread {
 public:
  static constexpr int kSlots = 4;

  explicit RowThread(const Scratch& scratch) : slots_(reinterpret_cast<Z*>(scratch.at)), stride_(scratch.stride) {}

  struct Kept {
    const Z* at;
    FR_HD Z operator()(int64_t i) const { return at[i]; }
  };

  template <class F>
  FR_HD Kept row(int slot, int64_t n, const F& f) const {
    Z* to = slots_ + slot * stride_;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) to[i + l] = f(i + l);
    }
    for (int l = 0; i < n && l < kLanes; ++l) to[i + l] = i + l < n ? f(i + l) : kLeast;
    return {to};
  }

  template <class F>
  FR_HD Kept keep(int slot, int64_t n, const F& f) const {
    Z* to = slots_ + slot * stride_;
    for (int64_t i = 0; i < n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) to[i + l] = f(i + l);
    }
    return {to};
  }

  // The largest value, then the first place where it stands.
  template <class Skip>
  FR_HD int64_t top(int64_t n, const Kept& kept, const Skip& skip) const {
    const Z* z = kept.at;
    Z lane[kLanes];
    for (int l = 0; l < kLanes; ++l) lane[l] = kLeast;
    for (int64_t i = 0; i < n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const Z v = skip(i + l) ? kLeast : z[i + l];
        lane[l] = v > lane[l] ? v : lane[l];
      }
    }
    const Z most = fold(lane, [](Z a, Z b) { return a > b ? a : b; });
    for (int64_t i = 0; i < n; i += kLanes) {
      int found = 0;
#pragma omp simd reduction(| : found)
      for (int l = 0; l < kLanes; ++l) found |= z[i + l] == most;
      for (int64_t j = i; found && j < i + kLanes && j < n; ++j) {
        if (z[j] == most && !skip(j)) return j;
      }
    }
    return -1;
  }

  template <class F>
  FR_HD bool any(int64_t n, const F& f) const {
    int found = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
#pragma omp simd reduction(| : found)
      for (int l = 0; l < kLanes; ++l) found |= f(i + l) ? 1 : 0;
    }
    return found != 0;
  }

  // Element i is added to lane i % 16, and the lanes in a fixed order: the vector width does not matter.
  template <class F>
  FR_HD Z sum(int64_t n, const F& f) const {
    Z lane[kLanes] = {};
    for (int64_t i = 0; i < n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) lane[l] += f(i + l);
    }
    return fold(lane, [](Z a, Z b) { return a + b; });
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

 private:
  static constexpr Z kLeast = -std::numeric_limits<Z>::infinity();

  template <int kWidth = kLanes / 2, class Op>
  FR_HD static Z fold(Z* lane, const Op& op) {
#pragma omp simd
    for (int l = 0; l < kWidth; ++l) lane[l] = op(lane[l], lane[l + kWidth]);
    if constexpr (kWidth > 1) return fold<kWidth / 2>(lane, op);
    return lane[0];
  }

  Z* slots_;
  int64_t stride_;
};

template <class S>
Status logit_rows(const LogitLoss& a, int threads) {
  using Team = RowThread<Compute<S>>;
  return for_each(a.batch * a.classes > kSmallLoss ? threads : 1, a.batch, Team::kSlots, padded(a.classes),
                  [&](const Scratch& scratch, int64_t row) { logit_row<Team, S>(Team(scratch), a, row); });
}

}  // namespace

Status logit_loss(const LogitLoss& a, int threads) {
  return with_type(a.dtype, [&](auto s) { return logit_rows<decltype(s)>(a, threads); });
}

}  // namespace fastrobust::cpu::FR_ISA
