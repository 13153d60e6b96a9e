// The smaller steps for one instruction set, and the table of all.
#include "fastrobust/steps.h"

#include <cmath>
#include <cstring>

#include "../parallel.h"

namespace fastrobust::cpu::FR_ISA {

Status fab_step(const FabStep&, int threads);
Status apgd_step(const ApgdStep&, int threads);

namespace {

// f(i) summed over a row.
template <class F>
double sum(int64_t n, const F& f) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += f(i);
  return total;
}

template <class At>
double measure(Measure kind, int64_t n, const At& at) {
  switch (kind) {
    case Measure::l2:
      return std::sqrt(sum(n, [&](int64_t i) { return static_cast<double>(at(i)) * at(i); }));
    case Measure::l1:
      return sum(n, [&](int64_t i) { return static_cast<double>(std::fabs(at(i))); });
    case Measure::l0:
      return sum(n, [&](int64_t i) { return at(i) != 0 ? 1.0 : 0.0; });
    case Measure::linf:
      break;
  }
  decltype(at(0)) most = 0;
  int odd = 0;
#pragma omp simd reduction(max : most) reduction(| : odd)
  for (int64_t i = 0; i < n; ++i) {
    const auto v = std::fabs(at(i));
    most = most > v ? most : v;
    odd |= v != v;
  }
  return odd ? std::nan("") : most;
}

Status norms(const Norms& a, int threads) {
  in_team(
      team_for(threads, a.batch * a.dim / 4), a.batch, [] { return 0; },
      [&](int, int64_t b) {
        const float *x = a.a + b * a.dim, *y = a.b ? a.b + b * a.dim : nullptr;
        a.out[b] = y ? measure(a.measure, a.dim, [&](int64_t i) { return static_cast<double>(x[i]) - y[i]; })
                     : measure(a.measure, a.dim, [&](int64_t i) { return x[i]; });
      });
  return Status::ok;
}

// A magnitude's bits: they are ordered as the magnitudes are, NaN last.
uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof(bits));
  return bits & 0x7fffffffu;
}

// The k-th largest of n numbers, k from 1, in whatever order they end.
uint32_t kth_largest(uint32_t* v, int64_t n, int64_t k) {
  int64_t first = 0, last = n - 1, at = k - 1;
  while (first < last) {
    const uint32_t pivot = v[first + (last - first) / 2];
    int64_t i = first, j = last;
    while (i <= j) {
      while (v[i] > pivot) ++i;
      while (v[j] < pivot) --j;
      if (i <= j) {
        const uint32_t other = v[i];
        v[i++] = v[j];
        v[j--] = other;
      }
    }
    if (at <= j)
      last = j;
    else if (at >= i)
      first = i;
    else
      break;
  }
  return v[at];
}

template <bool kBoxed>
void unit_row(const UnitStep& a, int64_t b, float* delta) {
  const int64_t n = a.dim, at = b * n;
  const float *x = a.x + at, *centre = a.centre + at, *slope = a.slope + at, *low = a.low, *high = a.high;
  const double norm = measure(Measure::l2, n, [&](int64_t i) { return slope[i]; });
  const double length = norm > 0 ? a.length[b] / norm : 0.0;
  const auto clipped = [&](int64_t i, float v) {
    if constexpr (!kBoxed) return v;
    const float above = v > low[i] ? v : low[i];
    return above < high[i] ? above : high[i];
  };
  float* out = a.out + at;
  if (a.after == After::nothing) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = clipped(i, x[i] + static_cast<float>(slope[i] * length));
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) delta[i] = x[i] + static_cast<float>(slope[i] * length) - centre[i];
  if (a.after == After::sphere) {
    const double far = measure(Measure::l2, n, [&](int64_t i) { return delta[i]; });
    const double scale = far > 0 ? a.size[b] / far : 0.0;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = clipped(i, centre[i] + static_cast<float>(delta[i] * scale));
    return;
  }
  uint32_t* bits = reinterpret_cast<uint32_t*>(delta + n);
  for (int64_t i = 0; i < n; ++i) bits[i] = bits_of(delta[i]);
  const int64_t wanted = static_cast<int64_t>(a.size[b]), count = wanted < 1 ? 1 : wanted < n ? wanted : n;
  const uint32_t least = kth_largest(bits, n, count);
  for (int64_t i = 0; i < n; ++i) out[i] = clipped(i, bits_of(delta[i]) >= least ? centre[i] + delta[i] : centre[i]);
}

Status unit_step(const UnitStep& a, int threads) {
  return for_each(team_for(threads, a.batch * a.dim / 4), a.batch, 1, a.dim, [&](const Scratch& scratch, int64_t b) {
    float* delta = reinterpret_cast<float*>(scratch.at);
    a.low ? unit_row<true>(a, b, delta) : unit_row<false>(a, b, delta);
  });
}

Status square_step(const SquareStep& a, int threads) {
  const int64_t plane = a.rows * a.columns, dim = a.channels * plane;
  in_team(
      team_for(threads, a.batch * dim / 4), a.batch, [] { return 0; },
      [&](int, int64_t b) {
        const int64_t* plan = a.plan + (b * a.plans + a.at[b]) * a.words;
        const int64_t height = a.heights[a.query[b]], width = a.widths[a.query[b]];
        float* out = a.out + b * dim;
        memcpy(out, a.kept + b * dim, static_cast<size_t>(dim) * sizeof(float));
        for (int64_t c = 0; c < a.channels; ++c) {
          const float* end = (plan[5 + c] ? a.upper : a.lower) + b * dim;
          for (int64_t r = 0; r < height; ++r) {
            const int64_t from = c * plane + (plan[0] + r) * a.columns + plan[1];
            memcpy(out + from, end + from, static_cast<size_t>(width) * sizeof(float));
          }
        }
      });
  return Status::ok;
}

Status draw_back(const DrawBack& a, int threads) {
  in_team(
      team_for(threads, a.batch * a.dim / 4), a.batch, [] { return 0; },
      [&](int, int64_t b) {
        if (!a.rows[b]) return;
        float* x = a.x + b * a.dim;
        const float *centre = a.centre + b * a.dim, *low = a.low, *high = a.high, share = a.share;
#pragma omp simd
        for (int64_t i = 0; i < a.dim; ++i) {
          const float v = centre[i] + (x[i] - centre[i]) * share, above = v > low[i] ? v : low[i];
          x[i] = above < high[i] ? above : high[i];
        }
      });
  return Status::ok;
}

}  // namespace

extern const Steps steps;
const Steps steps{fab_step, apgd_step, unit_step, square_step, draw_back, norms};

}  // namespace fastrobust::cpu::FR_ISA
