// How a kernel is launched and its dynamic shared memory declared: by nvcc, or by the tests' emulation of a device.
#pragma once
#include "fastrobust/types.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define FR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define FR_SHARED(type, name) extern __shared__ type name[]
#else
#include "cuda_emulation.h"
#define FR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  emulation::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define FR_SHARED(type, name) type* const name = emulation::shared<type>()
#endif

namespace fastrobust::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks that take a sample (or a few rows) at a time: these many, and they come back until all are done.
constexpr int64_t kMostBlocks = 8192;
inline unsigned blocks_for(int64_t items) { return static_cast<unsigned>(items < kMostBlocks ? items : kMostBlocks); }

// Clears the error: the next launch is not blamed for this one.
inline Status launched() { return cudaGetLastError() == cudaSuccess ? Status::ok : Status::launch_failed; }

}  // namespace fastrobust::cuda
