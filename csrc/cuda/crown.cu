// Linear functions between lines: a block a row forwards, a thread an element of a sample backwards.
#include "fastrobust/crown.h"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) forward(const CrownLines a) {
  FR_SHARED(double, scratch);
  const Block block(scratch);
  const T *w = static_cast<const T*>(a.weight), *low_slope = static_cast<const T*>(a.low_slope),
          *low = static_cast<const T*>(a.low), *high_slope = static_cast<const T*>(a.high_slope),
          *high = static_cast<const T*>(a.high);
  T* moved = static_cast<T*>(a.moved);
  for (int64_t row = blockIdx.x; row < a.batch * a.rows; row += gridDim.x) {
    const int64_t at = row * a.size, line = row / a.rows * a.size;
    const double total = block.sum(a.size, [&](int64_t i) {
      const T v = w[at + i];
      const bool above = v > 0;
      moved[at + i] = v * (above ? low_slope[line + i] : high_slope[line + i]);
      return static_cast<double>(v) * (above ? low[line + i] : high[line + i]);
    });
    if (threadIdx.x == 0) a.constant[row] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward(const CrownLines a) {
  const T *w = static_cast<const T*>(a.weight), *low_slope = static_cast<const T*>(a.low_slope),
          *low = static_cast<const T*>(a.low), *high_slope = static_cast<const T*>(a.high_slope),
          *high = static_cast<const T*>(a.high);
  const T* g = static_cast<const T*>(a.grad_moved);
  T* by_weight = static_cast<T*>(a.grad_weight);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < a.batch * a.size; k += step) {
    const int64_t sample = k / a.size, i = k % a.size;
    T by_low_slope = 0, by_low = 0, by_high_slope = 0, by_high = 0;
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t row = sample * a.rows + r, at = row * a.size + i;
      const T c = static_cast<T>(a.grad_constant[row]), v = w[at], slope = g[at];
      const bool above = v > 0;
      by_weight[at] = slope * (above ? low_slope[k] : high_slope[k]) + c * (above ? low[k] : high[k]);
      if (above) {
        by_low_slope += slope * v;
        by_low += c * v;
      } else {
        by_high_slope += slope * v;
        by_high += c * v;
      }
    }
    static_cast<T*>(a.grad_low_slope)[k] = by_low_slope;
    static_cast<T*>(a.grad_low)[k] = by_low;
    static_cast<T*>(a.grad_high_slope)[k] = by_high_slope;
    static_cast<T*>(a.grad_high)[k] = by_high;
  }
}

template <class T>
Status launch(const CrownLines& a, void* stream, bool back) {
  if (a.batch * a.rows * a.size == 0) return Status::ok;
  if (back) {
    FR_LAUNCH(backward<T>, blocks_for((a.batch * a.size + kThreads - 1) / kThreads), kThreads, 0, stream, a);
  } else {
    FR_LAUNCH(forward<T>, blocks_for(a.batch * a.rows), kThreads, Block::shared_bytes(kThreads), stream, a);
  }
  return launched();
}

Status lines(const CrownLines& a, void* stream, bool back) {
  if (a.dtype == DType::f32) return launch<float>(a, stream, back);
  if (a.dtype == DType::f64) return launch<double>(a, stream, back);
  return Status::bad_dtype;
}

}  // namespace

Status crown_lines(const CrownLines& a, void* stream) { return lines(a, stream, false); }
Status crown_lines_backward(const CrownLines& a, void* stream) { return lines(a, stream, true); }

}  // namespace fastrobust::cuda
