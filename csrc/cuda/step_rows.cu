// pgd_step and project for L2 and L1, by the formulas of common/rows.h.
#include "../common/element.h"
#include "rows.cuh"

namespace fastrobust::cuda {
namespace {

template <class T, class G, Norm kNorm>
__global__ void __launch_bounds__(kMostThreads, 1) step_kernel(const PgdStep a) {
  FR_SHARED(double, scratch);
  const Block team(scratch);
  for (int64_t b = blockIdx.x; b < a.batch; b += gridDim.x) {
    const int64_t at = b * a.dim;
    const T* step_each = static_cast<const T*>(a.step_each);
    const Row<T, G> row{static_cast<T*>(a.out) + at,
                        static_cast<const T*>(a.x_adv) + at,
                        static_cast<const T*>(a.x) + at,
                        a.grad ? static_cast<const G*>(a.grad) + at : nullptr,
                        a.dim,
                        step_each ? static_cast<double>(step_each[b]) : a.step,
                        eps_of<T>(a.ball, b),
                        a.ball,
                        T(0),
                        T(0)};
    int32_t found = 0;
    step_row<kNorm>(team, row, &found);
    if (a.flags && threadIdx.x == 0) a.flags[b] |= found;
  }
}

template <class T, class G>
Status step_along(const PgdStep& a, void* stream) {
  if (a.ball.norm == Norm::l1) return launch_rows(step_kernel<T, G, Norm::l1>, a, stream);
  return launch_rows(step_kernel<T, G, Norm::l2>, a, stream);
}

template <class T>
Status step_for(const PgdStep& a, void* stream) {
  return with_type(a.grad_dtype, [&](auto s) { return step_along<T, decltype(s)>(a, stream); });
}

}  // namespace

Status step_rows(const PgdStep& a, void* stream) {
  return a.dtype == DType::f32 ? step_for<float>(a, stream) : step_for<double>(a, stream);
}

}  // namespace fastrobust::cuda
