// The launchers of pgd_step (also project) and random_start. Linf steps are here, the rest goes to *_rows.cu.
#include "../common/element.h"
#include "linf.cuh"
#include "rows.cuh"

namespace fastrobust::cuda {
namespace {

template <class T>
Status linf_for(const PgdStep& a, void* stream) {
  if (!a.grad) return step_linf<T, NoGradient>(a, stream);
  return with_type(a.grad_dtype, [&](auto s) { return step_linf<T, decltype(s)>(a, stream); });
}

bool is_iterate(DType dtype) { return dtype == DType::f32 || dtype == DType::f64; }

}  // namespace

Status pgd_step(const PgdStep& args, void* stream) {
  if (!is_iterate(args.dtype)) return Status::bad_dtype;
  if (args.batch == 0 || args.dim == 0) return Status::ok;
  if (args.ball.norm != Norm::linf) return step_rows(args, stream);
  return args.dtype == DType::f32 ? linf_for<float>(args, stream) : linf_for<double>(args, stream);
}

Status random_start(const RandomStart& args, void* stream) {
  if (!is_iterate(args.dtype)) return Status::bad_dtype;
  if (args.batch == 0 || args.dim == 0) return Status::ok;
  return start_rows(args, stream);
}

}  // namespace fastrobust::cuda
