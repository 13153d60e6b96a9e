// fab_step for one instruction set.
#include "fastrobust/steps.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../parallel.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// f(begin, end) for parts of a row: sums within one are float32, those over them double.
template <class F>
void in_parts(int64_t n, const F& f) {
  constexpr int64_t kPart = 128;
  for (int64_t i = 0; i < n; i += kPart) f(i, std::min(n, i + kPart));
}

// l with sum_i gain_i min(l slope_i, room_i) = need, slope being 1 (Linf) or the gain (L2); infinite where there is
// none. The sum is concave in l and piecewise linear: Newton's method from 0 never passes the root, and ends at it.
template <bool kLinf>
double level(const float* gain, const float* room, int64_t n, double need) {
  double all = 0;
  in_parts(n, [&](int64_t begin, int64_t end) {
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += kLinf ? gain[i] : gain[i] * gain[i];
    all += part;
  });
  if (!(all > 0)) return kInfinity;
  double at = need / all;
  int64_t filled = 0;
  for (int64_t turn = 0; turn <= n; ++turn) {
    double used = 0, rest = 0;
    int64_t count = 0;
    const float reach = static_cast<float>(at);
    in_parts(n, [&](int64_t begin, int64_t end) {
      float used_here = 0, rest_here = 0;
      int32_t count_here = 0;
#pragma omp simd reduction(+ : used_here, rest_here, count_here)
      for (int64_t i = begin; i < end; ++i) {
        const float g = gain[i], r = room[i];
        const bool full = ((kLinf ? reach : reach * g) >= r) & (g > 0);
        used_here += full ? g * r : 0.0f;
        rest_here += full ? 0.0f : (kLinf ? g : g * g);
        count_here += full;
      }
      used += used_here;
      rest += rest_here;
      count += count_here;
    });
    if (count == filled) break;
    filled = count;
    if (!(rest > 0)) return kInfinity;
    at = std::max(at, (need - used) / rest);
  }
  return at == at ? at : kInfinity;
}

// The least step from `from` that makes <slope, .> gain `missing`; returns its norm.
template <bool kLinf>
double least(float* step, const float* from, const float* slope, const FabStep& a, double missing, float* gain,
             float* room) {
  const bool back = missing < 0;
  const float *low = a.low, *high = a.high;
  const int64_t n = a.dim;
  float steepest = 0;
#pragma omp simd reduction(max : steepest)
  for (int64_t i = 0; i < n; ++i) {
    const float w = slope[i], size = std::fabs(w);
    const bool up = (w > 0) != back;
    const float space = up ? high[i] - from[i] : from[i] - low[i];
    steepest = steepest > size ? steepest : size;
    room[i] = (w != 0) & (space > 0) ? space : 0.0f;
  }
  // Gains of at most 1, whose squares are in float's range.
  const double scale = steepest > 0 ? 1.0 / steepest : 0.0;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) gain[i] = static_cast<float>(std::fabs(slope[i]) * scale);
  const double reach = level<kLinf>(gain, room, n, std::fabs(missing) * scale);
  double sum = 0, largest = 0;
#pragma omp simd reduction(+ : sum) reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) {
    const float far = static_cast<float>(kLinf ? reach : reach * gain[i]);
    const float length = gain[i] > 0 ? (far < room[i] ? far : room[i]) : 0.0f;
    step[i] = (slope[i] > 0) != back ? length : -length;
    sum += static_cast<double>(length) * length;
    largest = largest > length ? largest : length;
  }
  return kLinf ? largest : std::sqrt(sum);
}

template <bool kLinf>
Status run(const FabStep& a, int threads) {
  return for_each(threads, a.batch, 2, a.dim, [&](const Scratch& scratch, int64_t b) {
    const int64_t n = a.dim;
    float* rows = reinterpret_cast<float*>(scratch.at);  // 4 rows of floats
    float *gain = rows, *room = rows + scratch.stride, *here = room + scratch.stride, *there = here + scratch.stride;
    const float *x = a.x + b * n, *centre = a.centre + b * n, *slope = a.slope + b * n;
    const double near = least<kLinf>(here, x, slope, a, -static_cast<double>(a.lead[b]), gain, room);
    double back = 0;
#pragma omp simd reduction(+ : back)
    for (int64_t i = 0; i < n; ++i) back += static_cast<double>(slope[i]) * (x[i] - centre[i]);
    const double far = least<kLinf>(there, centre, slope, a, back - a.lead[b], gain, room);
    const double closest = std::max(near, 1e-8), farthest = std::max(far, 1e-8);
    const float weight = static_cast<float>(std::min(closest / (closest + farthest), a.most_back));
    const float eta = static_cast<float>(a.eta), rest = 1 - weight;
    const float *low = a.low, *high = a.high;
    float* out = a.out + b * n;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float moved = (x[i] + eta * here[i]) * rest + (centre[i] + eta * there[i]) * weight;
      const float above = moved > low[i] ? moved : low[i];
      out[i] = above < high[i] ? above : high[i];
    }
  });
}

}  // namespace

Status fab_step(const FabStep& args, int threads) {
  return args.norm == Norm::linf ? run<true>(args, threads) : run<false>(args, threads);
}

}  // namespace fastrobust::cpu::FR_ISA
