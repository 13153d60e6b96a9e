// random_start, by the formulas of common/start.h.
#include "../common/start.h"
#include "rows.cuh"

namespace fastrobust::cuda {
namespace {

template <class T, Norm kNorm>
__global__ void __launch_bounds__(kMostThreads, 1) start_kernel(const RandomStart a) {
  FR_SHARED(double, scratch);
  const Block team(scratch);
  Ball ball = a.ball;
  ball.norm = kNorm;  // known to the compiler, which drops the other norms
  for (int64_t b = blockIdx.x; b < a.batch; b += gridDim.x) {
    const int64_t at = b * a.dim;
    const auto sample = static_cast<uint32_t>(a.index ? a.index[b] : b);
    start_row(team, StartRow<T>{static_cast<T*>(a.out) + at, static_cast<const T*>(a.x) + at, a.dim, eps_of<T>(ball, b),
                                ball, a.seed, sample, a.draw});
  }
}

template <class T>
Status start_for(const RandomStart& a, void* stream) {
  switch (a.ball.norm) {
    case Norm::linf:
      return launch_rows(start_kernel<T, Norm::linf>, a, stream);
    case Norm::l2:
      return launch_rows(start_kernel<T, Norm::l2>, a, stream);
    case Norm::l1:
      return launch_rows(start_kernel<T, Norm::l1>, a, stream);
  }
  return Status::launch_failed;
}

}  // namespace

Status start_rows(const RandomStart& a, void* stream) {
  return a.dtype == DType::f32 ? start_for<float>(a, stream) : start_for<double>(a, stream);
}

}  // namespace fastrobust::cuda
