// logit_loss: a warp a row, by the formulas of common/logit.h.
#include "../common/logit.h"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = kThreads / kWarp;  // a block's rows at a time

template <class S>
__global__ void __launch_bounds__(kThreads, 4) logit_rows(const LogitLoss a) {
  const Warp warp(threadIdx.x % kWarp);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp; row < a.batch; row += step) {
    logit_row<Warp, S>(warp, a, row);
  }
}

template <class S>
Status launch(const LogitLoss& a, void* stream) {
  if (a.batch == 0) return Status::ok;
  FR_LAUNCH(logit_rows<S>, blocks_for((a.batch + kRows - 1) / kRows), kThreads, 0, stream, a);
  return launched();
}

}  // namespace

Status logit_loss(const LogitLoss& args, void* stream) {
  return with_type(args.dtype, [&](auto s) { return launch<decltype(s)>(args, stream); });
}

}  // namespace fastrobust::cuda
