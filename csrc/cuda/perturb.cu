// pgd_step, project and random_start. Linf is elementwise (linf.cuh); for L2 and L1, and for random starts, a block
// takes a sample and works by the formulas of common/rows.h and common/start.h.
#include "../common/start.h"
#include "linf.cuh"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kMostThreads = 512;

// A block's threads, from the sample's size alone: results must not depend on the batch.
int threads_for(int64_t dim) {
  int threads = kWarp;
  while (threads < kMostThreads && threads * 8 < dim) threads *= 2;
  return threads;
}

unsigned blocks_for(int64_t batch) { return static_cast<unsigned>(batch < kMostBlocks ? batch : kMostBlocks); }

template <class T>
__device__ double eps_of(const Ball& ball, int64_t b) {
  return ball.eps_each ? static_cast<double>(static_cast<const T*>(ball.eps_each)[b]) : ball.eps;
}

template <class T, class G, Norm kNorm>
__global__ void __launch_bounds__(kMostThreads) step_rows(const PgdStep a) {
  FR_SHARED(double, scratch);
  const Block team(scratch);
  Ball ball = a.ball;
  ball.norm = kNorm;
  for (int64_t b = blockIdx.x; b < a.batch; b += gridDim.x) {
    const int64_t at = b * a.dim;
    const double step = a.step_each ? static_cast<double>(static_cast<const T*>(a.step_each)[b]) : a.step;
    const Row<T, G> row{static_cast<T*>(a.out) + at,
                        static_cast<const T*>(a.x_adv) + at,
                        static_cast<const T*>(a.x) + at,
                        a.grad ? static_cast<const G*>(a.grad) + at : nullptr,
                        a.dim,
                        step,
                        eps_of<T>(ball, b),
                        ball};
    int32_t found = 0;
    step_row(team, row, &found);
    if (a.flags && threadIdx.x == 0) a.flags[b] |= found;
  }
}

template <class T, Norm kNorm>
__global__ void __launch_bounds__(kMostThreads) start_rows(const RandomStart a) {
  FR_SHARED(double, scratch);
  const Block team(scratch);
  Ball ball = a.ball;
  ball.norm = kNorm;
  for (int64_t b = blockIdx.x; b < a.batch; b += gridDim.x) {
    const int64_t at = b * a.dim;
    const auto sample = static_cast<uint32_t>(a.index ? a.index[b] : b);
    start_row(team, StartRow<T>{static_cast<T*>(a.out) + at, static_cast<const T*>(a.x) + at, a.dim,
                                eps_of<T>(ball, b), ball, a.seed, sample, a.draw});
  }
}

template <class Args, class Kernel>
Status launch_rows(Kernel kernel, const Args& a, void* stream) {
  const int threads = threads_for(a.dim);
  FR_LAUNCH(kernel, blocks_for(a.batch), threads, Block::shared_bytes(threads), stream, a);
  return launched();
}

template <class T, class G>
Status step_along(const PgdStep& a, void* stream) {
  if (a.ball.norm == Norm::linf) return linf_step_on<T, G>(a, stream);
  if (a.ball.norm == Norm::l2) return launch_rows(step_rows<T, G, Norm::l2>, a, stream);
  return launch_rows(step_rows<T, G, Norm::l1>, a, stream);
}

template <class T>
Status step_for(const PgdStep& a, void* stream) {
  if (!a.grad && a.ball.norm == Norm::linf) return linf_step_on<T, NoGradient>(a, stream);
  switch (a.grad_dtype) {
    case DType::f32: return step_along<T, float>(a, stream);
    case DType::f64: return step_along<T, double>(a, stream);
    case DType::bf16: return step_along<T, BFloat16>(a, stream);
    case DType::f16: return step_along<T, Half>(a, stream);
  }
  return Status::bad_dtype;
}

template <class T>
Status start_for(const RandomStart& a, void* stream) {
  if (a.ball.norm == Norm::linf) return launch_rows(start_rows<T, Norm::linf>, a, stream);
  if (a.ball.norm == Norm::l2) return launch_rows(start_rows<T, Norm::l2>, a, stream);
  return launch_rows(start_rows<T, Norm::l1>, a, stream);
}

bool known(DType dtype) { return dtype == DType::f32 || dtype == DType::f64; }

}  // namespace

Status pgd_step(const PgdStep& args, void* stream) {
  if (!known(args.dtype)) return Status::bad_dtype;
  if (args.batch == 0 || args.dim == 0) return Status::ok;
  return args.dtype == DType::f32 ? step_for<float>(args, stream) : step_for<double>(args, stream);
}

Status random_start(const RandomStart& args, void* stream) {
  if (!known(args.dtype)) return Status::bad_dtype;
  if (args.batch == 0 || args.dim == 0) return Status::ok;
  return args.dtype == DType::f32 ? start_for<float>(args, stream) : start_for<double>(args, stream);
}

}  // namespace fastrobust::cuda
