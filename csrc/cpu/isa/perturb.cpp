// pgd_step, project and random_start for one instruction set.
#include <type_traits>

#include "../../common/element.h"
#include "../../common/linf.h"
#include "../../common/start.h"
#include "../parallel.h"
#include "../team.h"

namespace fastrobust::cpu::FR_ISA {

constexpr int64_t kGrain = kSmallStep;      // larger rows are cut into chunks of this size
constexpr int64_t kSmallRows = kGrain / 4;  // ... of L2 and L1, which take longer

template <class T>
struct LinfBox {  // per-feature ends when `lo` is set, the two scalars otherwise
  const T *lo, *hi;
  T low, high;
};

template <bool kBoxed, bool kStep, class T, class G>
FR_ROUNDING void linf_chunk(T* out, const T* x_adv, const T* x, const G* grad, int64_t n, T step, T eps,
                            const LinfBox<T>& box) {
  using Wide = decltype(load<float>(G{}));
  using Value = std::conditional_t<std::is_same_v<G, double>, double, Wide>;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T lo = kBoxed ? box.lo[i] : box.low, hi = kBoxed ? box.hi[i] : box.high;
    if constexpr (kStep)
      out[i] = linf_step<Down>(x_adv[i], x[i], load<Value>(grad[i]), step, eps, lo, hi);
    else
      out[i] = linf_project<Down>(x_adv[i], x[i], eps, lo, hi);
  }
}

template <class G>
FR_HD int32_t survey_chunk(const G* grad, int64_t n) {
  int useful = 0, odd = 0;
#pragma omp simd reduction(| : useful, odd)
  for (int64_t i = 0; i < n; ++i) {
    const auto v = load<std::conditional_t<std::is_same_v<G, double>, double, float>>(grad[i]);
    const bool finite = is_finite(v);
    useful |= finite & (v != 0);
    odd |= !finite;
  }
  return (useful ? kUseful : 0) | (odd ? kNonFinite : 0);
}

template <class T, class G>
void linf(const PgdStep& a, int threads) {
  const Ball& ball = a.ball;
  const bool boxed = ball.lo_each != nullptr;
  // Without anything that belongs to a sample or a feature, the batch is one long row.
  const bool flat = !boxed && !ball.eps_each && !a.step_each && !a.flags;
  const int64_t rows = flat ? 1 : a.batch, dim = flat ? a.batch * a.dim : a.dim;
  const int64_t pieces = (dim + kGrain - 1) / kGrain;
  const int64_t chunk = pieces > 1 ? kGrain : dim;
  const T step_all = static_cast<T>(a.step), eps_all = cast_down<T>(ball.eps);
  const LinfBox<T> ends{nullptr, nullptr, cast_up<T>(ball.lo), cast_down<T>(ball.hi)};
  const auto piece = [&](const RoundDown&, int64_t item) {
    const int64_t row = item / pieces, begin = (item - row * pieces) * chunk, at = row * dim + begin;
    const int64_t n = dim - begin < chunk ? dim - begin : chunk;
    const T step = a.step_each ? static_cast<const T*>(a.step_each)[row] : step_all;
    const T eps = ball.eps_each ? static_cast<const T*>(ball.eps_each)[row] : eps_all;
    T* out = static_cast<T*>(a.out) + at;
    const T* x_adv = static_cast<const T*>(a.x_adv) + at;
    const T* x = static_cast<const T*>(a.x) + at;
    const G* grad = static_cast<const G*>(a.grad) + (a.grad ? at : 0);
    const int32_t found = a.flags && a.grad ? survey_chunk(grad, n) : 0;
    if (boxed) {
      const LinfBox<T> box{static_cast<const T*>(ball.lo_each) + begin, static_cast<const T*>(ball.hi_each) + begin,
                           T(0), T(0)};
      if (a.grad)
        linf_chunk<true, true>(out, x_adv, x, grad, n, step, eps, box);
      else
        linf_chunk<true, false>(out, x_adv, x, grad, n, step, eps, box);
    } else if (a.grad) {
      linf_chunk<false, true>(out, x_adv, x, grad, n, step, eps, ends);
    } else {
      linf_chunk<false, false>(out, x_adv, x, grad, n, step, eps, ends);
    }
    if (found) {
#pragma omp atomic
      a.flags[row] |= found;
    }
  };
  in_team(rows * dim > kSmallStep ? threads : 1, rows * pieces, [] { return RoundDown(); }, piece);
}

// A narrower gradient is widened into scratch memory first, so that the long row bodies are compiled for few types.
template <class W, class G>
void widen(const void* from, W* to, int64_t at, int64_t n) {
  const G* g = static_cast<const G*>(from) + at;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = load<W>(g[i]);
}

template <class W>
const W* widened(const PgdStep& a, int64_t at, W* scratch) {
  with_type(a.grad_dtype, [&](auto s) {
    widen<W, decltype(s)>(a.grad, scratch, at, a.dim);
    return Status::ok;
  });
  return scratch;
}

// W: the type in which the gradient is read, f64 if either it or the iterate is.
template <class T, class W, bool kBoxed>
Status rows(const PgdStep& a, int threads) {
  const bool direct = a.grad_dtype == (sizeof(W) == 8 ? DType::f64 : DType::f32), l1 = a.ball.norm == Norm::l1;
  const T low = cast_up<T>(a.ball.lo), high = cast_down<T>(a.ball.hi);
  const int slots = l1 ? 4 : 2;
  const auto row = [&](const Scratch& scratch, int64_t b) {
    const int64_t at = b * a.dim;
    const T* step_each = static_cast<const T*>(a.step_each);
    const T* eps_each = static_cast<const T*>(a.ball.eps_each);
    W* wide = reinterpret_cast<W*>(scratch.at + slots * scratch.stride);
    const W* grad = !a.grad ? nullptr : direct ? static_cast<const W*>(a.grad) + at : widened(a, at, wide);
    const Row<T, W, kBoxed> row{static_cast<T*>(a.out) + at,
                                static_cast<const T*>(a.x_adv) + at,
                                static_cast<const T*>(a.x) + at,
                                grad,
                                a.dim,
                                step_each ? static_cast<double>(step_each[b]) : a.step,
                                eps_each ? static_cast<double>(eps_each[b]) : a.ball.eps,
                                a.ball,
                                low,
                                high};
    const Thread team(scratch.at, scratch.stride);
    int32_t found = 0;
    l1 ? step_row<Norm::l1>(team, row, &found) : step_row<Norm::l2>(team, row, &found);
    if (a.flags) a.flags[b] |= found;
  };
  return for_each(a.batch * a.dim > kSmallRows ? threads : 1, a.batch, slots + (direct ? 0 : 1), a.dim, row);
}

template <class T, class W>
Status rows_for(const PgdStep& a, int threads) {
  return a.ball.lo_each ? rows<T, W, true>(a, threads) : rows<T, W, false>(a, threads);
}

template <class T>
Status linf_for(const PgdStep& a, int threads) {
  return with_type(a.grad_dtype, [&](auto s) {
    linf<T, decltype(s)>(a, threads);
    return Status::ok;
  });
}

Status pgd_step(const PgdStep& a, int threads) {
  const bool wide = a.dtype == DType::f64;
  if (!wide && a.dtype != DType::f32) return Status::bad_dtype;
  if (a.ball.norm == Norm::linf) return wide ? linf_for<double>(a, threads) : linf_for<float>(a, threads);
  if (wide) return rows_for<double, double>(a, threads);
  return a.grad_dtype == DType::f64 ? rows_for<float, double>(a, threads) : rows_for<float, float>(a, threads);
}

template <class T>
Status start(const RandomStart& a, int threads) {
  return for_each(a.batch * a.dim > kSmallRows ? threads : 1, a.batch, 1, a.dim,
                  [&](const Scratch& scratch, int64_t b) {
                    const int64_t at = b * a.dim;
                    const double eps =
                        a.ball.eps_each ? static_cast<double>(static_cast<const T*>(a.ball.eps_each)[b]) : a.ball.eps;
                    const auto sample = static_cast<uint32_t>(a.index ? a.index[b] : b);
                    start_row(Thread(scratch.at, scratch.stride),
                              StartRow<T>{static_cast<T*>(a.out) + at, static_cast<const T*>(a.x) + at, a.dim, eps,
                                          a.ball, a.seed, sample, a.draw});
                  });
}

Status random_start(const RandomStart& a, int threads) {
  if (a.dtype == DType::f32) return start<float>(a, threads);
  return a.dtype == DType::f64 ? start<double>(a, threads) : Status::bad_dtype;
}

}  // namespace fastrobust::cpu::FR_ISA
