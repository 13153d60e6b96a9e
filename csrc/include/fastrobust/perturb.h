// The steps of an attack iterate: move along the gradient, return to the ball and to the box, start at random.
//
// Contract. Arrays are dense; sample b is the `dim` elements from b * dim. All iterates have type `dtype`
// (f32 or f64); `out` may be `x_adv` itself. Per-sample and per-feature arrays have the iterate's type and may be
// null, in which case the scalar beside them holds. The box must contain x. Returned points satisfy
// ||out - x|| <= eps and lo <= out <= hi in real arithmetic (directed rounding), not only in floating point.
#pragma once
#include "fastrobust/types.h"

namespace fastrobust {

struct Ball {
  Norm norm;
  double eps;
  const void* eps_each;  // (batch,) or null
  double lo, hi;
  const void* lo_each;  // (dim,) or null; both or neither
  const void* hi_each;
  bool exact;  // L2: project onto ball and box together; otherwise onto the ball, then the box (torchattacks)
};

// `flags[b]` collects what sample b's gradient held: kUseful | kNonFinite.
constexpr int32_t kUseful = 1;     // an element that is finite and not zero
constexpr int32_t kNonFinite = 2;  // a NaN or an infinity

struct PgdStep {
  void* out;
  const void* x_adv;
  const void* x;
  const void* grad;  // null: project only
  DType dtype, grad_dtype;
  int64_t batch, dim;
  double step;
  const void* step_each;  // (batch,) or null
  Ball ball;
  int32_t* flags;  // (batch,) or null; or-ed into
};

struct RandomStart {
  void* out;
  const void* x;
  DType dtype;
  int64_t batch, dim;
  Ball ball;
  uint64_t seed;
  const int64_t* index;  // (batch,) sample ids, or null: 0 .. batch - 1
  uint32_t draw;         // which draw of each sample (the restart)
};

namespace cpu {
constexpr int64_t kSmallStep = 16384;  // elements that are not worth waking a second thread
Status pgd_step(const PgdStep& args, int threads);
Status random_start(const RandomStart& args, int threads);
}  // namespace cpu

namespace cuda {  // `stream` is a cudaStream_t; the call does not synchronise
Status pgd_step(const PgdStep& args, void* stream);
Status random_start(const RandomStart& args, void* stream);
}  // namespace cuda

}  // namespace fastrobust
