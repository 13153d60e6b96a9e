// Runs CUDA kernels on the CPU, so that their indexing, tails, reductions and barriers are tested without a GPU.
//
// A .cu file is compiled as C++; launch.cuh then includes this header in place of CUDA's. Blocks run one after another,
// each thread of a block on a fiber (fibers.h: one order of execution, chosen by `options()`, the same in every run)
// or, with EMULATION_THREADS, on a system thread (threads.h: for ThreadSanitizer). What the kernels may use:
// one-dimensional grids, dynamic shared memory, and the functions at the end of this file, warps always whole. A
// barrier that some thread never reaches is an error. Not emulated: time, memory ordering within a warp (a shuffle
// orders it here).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace emulation {

constexpr unsigned kWarpSize = 32, kMostThreads = 1024, kMostShared = 48 * 1024, kMostBlocks = 0x7fffffff;

enum class Order { forward, reverse, shuffled };  // in which warps, and the lanes of a warp, take their turns

struct Options {
  Order order = Order::forward;
  uint64_t first_block = 0, blocks = kMostBlocks;  // run only these, for grids too large to run whole
  // The device: its processors take a block each; shared memory that a kernel may ask for, and L2 cache, in bytes.
  int processors = 2, shared = 227 * 1024, cache = 1 << 25;
};
inline Options& options() {
  static Options o;
  return o;
}

// The streams that kernels were launched on, in order.
inline std::vector<void*>& launches() {
  static std::vector<void*> streams;
  return streams;
}

// The shared memory of the last launch, and what kernels have asked for beyond kMostShared.
inline size_t& last_shared() {
  static size_t bytes = 0;
  return bytes;
}
inline std::map<const void*, size_t>& shared_limits() {
  static std::map<const void*, size_t> limits;
  return limits;
}

struct Dim {
  unsigned x;
};

}  // namespace emulation

#ifdef EMULATION_THREADS
#include "threads.h"
#else
#include "fibers.h"
#endif

namespace emulation {

// Threads that meet at a barrier and exchange values there: each leaves its own in a slot, waits, reads the others'.
// Two sets of slots take turns, so that a quick thread's next value does not overwrite one still to be read.
template <unsigned kSlots>
struct Meeting {
  Barrier barrier;
  uint64_t slots[2][kSlots];

  template <class T>
  void leave(int turn, unsigned member, T v) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a slot holds eight bytes");
    std::memcpy(&slots[turn][member], &v, sizeof(T));
    barrier.wait();
  }
  template <class T>
  T value(int turn, unsigned member) const {
    T v;
    std::memcpy(&v, &slots[turn][member], sizeof(T));
    return v;
  }
};

struct Thread;

struct Block {
  using Member = Thread;

  Meeting<kMostThreads> all;
  Meeting<kWarpSize> warps[kMostThreads / kWarpSize];
  Dim index, threads, blocks;
  unsigned char* shared;
};

struct Thread {
  Block* block;
  Dim index;
  int block_turn, warp_turn;

  unsigned lane() const { return index.x % kWarpSize; }
  Meeting<kWarpSize>& warp() const { return block->warps[index.x / kWarpSize]; }
};

// The thread that is running.
inline Thread*& self() {
  static thread_local Thread* t = nullptr;
  return t;
}

template <class T>
T* shared() {
  return reinterpret_cast<T*>(self()->block->shared);
}

template <class T, class Read>
auto meet_in_warp(unsigned mask, T v, const Read& read) {
  if (mask != 0xffffffffu) throw std::logic_error("emulation: a warp's functions need all its lanes");
  Thread& me = *self();
  const int turn = me.warp_turn;
  me.warp_turn = 1 - turn;
  me.warp().leave(turn, me.lane(), v);
  return read(me.warp(), turn);
}

inline int meet_in_block(int v) {
  Thread& me = *self();
  const int turn = me.block_turn;
  me.block_turn = 1 - turn;
  me.block->all.leave(turn, me.index.x, v);
  int any = 0;
  for (unsigned t = 0; t < me.block->threads.x; ++t) any |= me.block->all.value<int>(turn, t);
  return any;
}

}  // namespace emulation

// --- the part of CUDA that kernels see
// ---------------------------------------------------------------------------------

#define threadIdx (emulation::self()->index)
#define blockIdx (emulation::self()->block->index)
#define blockDim (emulation::self()->block->threads)
#define gridDim (emulation::self()->block->blocks)

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrL2CacheSize };

namespace emulation {
inline cudaError_t& last_error() {
  static cudaError_t e = cudaSuccess;
  return e;
}
}  // namespace emulation

inline cudaError_t cudaGetLastError() {
  const cudaError_t e = emulation::last_error();
  emulation::last_error() = cudaSuccess;
  return e;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  const emulation::Options& o = emulation::options();
  *value = what == cudaDevAttrMultiProcessorCount ? o.processors : what == cudaDevAttrL2CacheSize ? o.cache : o.shared;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulation::options().shared) return cudaErrorInvalidValue;
  emulation::shared_limits()[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  *p = static_cast<T*>(std::malloc(bytes));
  if (!*p) return cudaErrorMemoryAllocation;
  std::memset(static_cast<void*>(*p), 0xff, bytes);  // NaN, as in shared memory
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  std::free(p);
  return cudaSuccess;
}

inline void __syncthreads() { emulation::self()->block->all.barrier.wait(); }
inline int __syncthreads_or(int v) { return emulation::meet_in_block(v != 0); }

template <class T>
T __shfl_sync(unsigned mask, T v, int source) {
  return emulation::meet_in_warp(mask, v, [&](auto& warp, int turn) { return warp.template value<T>(turn, source); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits) {
  const int source = static_cast<int>(emulation::self()->lane()) ^ bits;
  return __shfl_sync(mask, v, source);
}
inline int __any_sync(unsigned mask, int v) {
  return emulation::meet_in_warp(mask, v, [](auto& warp, int turn) {
    int any = 0;
    for (unsigned l = 0; l < emulation::kWarpSize; ++l) any |= warp.template value<int>(turn, l);
    return any != 0;
  });
}

inline int atomicOr(int* p, int v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

namespace emulation {

template <class... Formal, class... Actual>
void launch(void (*kernel)(Formal...), unsigned grid, unsigned threads, size_t shared_bytes, void* stream,
            const Actual&... args) {
  const auto limit = shared_limits().find(reinterpret_cast<const void*>(kernel));
  const bool valid = grid > 0 && grid <= kMostBlocks && threads > 0 && threads <= kMostThreads &&
                     threads % kWarpSize == 0 &&
                     shared_bytes <= (limit == shared_limits().end() ? kMostShared : limit->second);
  if (!valid) {
    last_error() = cudaErrorInvalidConfiguration;
    return;
  }
  launches().push_back(stream);
  last_shared() = shared_bytes;
  std::vector<unsigned char> shared(shared_bytes);  // of the exact size, for AddressSanitizer
  Block block{};
  block.threads = {threads};
  block.blocks = {grid};
  block.shared = shared.data();
  const uint64_t first = options().first_block, count = options().blocks;
  run_threads(
      block, [&] { kernel(args...); }, first, first + count < grid ? first + count : grid,
      [&] { std::fill(shared.begin(), shared.end(), 0xff); });  // NaN: nothing is there before it is written
}

}  // namespace emulation
