// Votes: a warp a row of logits, counted on the device.
#include "../common/element.h"
#include "fastrobust/noise.h"
#include "team.cuh"

namespace fastrobust::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = kThreads / kWarp;  // a block's rows at a time

template <class S>
__global__ void __launch_bounds__(kThreads) count(const AddVotes a) {
  using Z = Compute<S>;
  const Warp warp(threadIdx.x % kWarp);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp; row < a.slots; row += step) {
    const S* logits = static_cast<const S*>(a.logits) + row * a.classes;
    const auto logit = [=](int64_t c) { return load<Z>(logits[c]); };
    const bool odd = warp.any(a.classes, [=](int64_t c) { return logit(c) != logit(c); });
    const int64_t best = warp.top(a.classes, logit, [](int64_t) { return false; });
    const int64_t image = a.image[row];
    if (!warp.leads() || odd || image < 0 || image >= a.images) continue;
    atomicAdd(reinterpret_cast<unsigned long long*>(a.counts + image * a.classes + best), 1ull);
  }
}

template <class S>
Status launch(const AddVotes& a, void* stream) {
  FR_LAUNCH(count<S>, blocks_for((a.slots + kRows - 1) / kRows), kThreads, 0, stream, a);
  return launched();
}

}  // namespace

Status add_votes(const AddVotes& a, void* stream) {
  if (a.slots * a.classes == 0) return Status::ok;
  return with_type(a.dtype, [&](auto s) { return launch<decltype(s)>(a, stream); });
}

}  // namespace fastrobust::cuda
