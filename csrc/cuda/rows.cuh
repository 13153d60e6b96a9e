// A block a sample: what the L2 and L1 steps and the random starts share.
#pragma once
#include "fastrobust/perturb.h"
#include "team.cuh"

namespace fastrobust::cuda {

Status step_rows(const PgdStep& args, void* stream);  // L2 and L1
Status start_rows(const RandomStart& args, void* stream);

constexpr int kMostThreads = 512;  // kernels ask for one such block a processor: enough registers, no spills

// A block's threads follow from the sample's size alone: results must not depend on the batch.
inline int threads_for(int64_t dim) {
  int threads = kWarp;
  while (threads < kMostThreads && threads * 8 < dim) threads *= 2;
  return threads;
}

template <class T>
__device__ __forceinline__ double eps_of(const Ball& ball, int64_t b) {
  return ball.eps_each ? static_cast<double>(static_cast<const T*>(ball.eps_each)[b]) : ball.eps;
}

template <class Args>
Status launch_rows(void (*kernel)(Args), const Args& args, void* stream) {
  const int threads = threads_for(args.dim);
  FR_LAUNCH(kernel, blocks_for(args.batch), threads, Block::shared_bytes(threads), stream, args);
  return launched();
}

}  // namespace fastrobust::cuda
