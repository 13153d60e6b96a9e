// The kernels of fully connected networks: a block takes a few samples through everything, then the next ones.
#include "mlp.cuh"

#include "../common/linf.h"
#include "rows.cuh"

namespace fastrobust::cuda::mlp {
namespace {

constexpr int kLeastThreads = 128;  // a warp a sample where a block has four
constexpr int kFew = 1, kMany = 4;  // samples a thread
constexpr int kPackBlocks = 128;
constexpr int kFooled = 1, kLeaves = 2;

__device__ __forceinline__ void copy_row(float* to, const float* from, int64_t n) {
  for (int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) to[i] = from[i];
}

// The loss with its pointers at sample b.
__device__ __forceinline__ LogitLoss at_sample(LogitLoss a, int64_t b, int64_t classes) {
  a.label += b;
  if (a.target) a.target += b;
  if (a.reference) a.reference = static_cast<const float*>(a.reference) + b * classes;
  return a;
}

template <int kTile>
__global__ void __launch_bounds__(kMostThreads, 1) pass_kernel(const PassArgs args) {
  FR_SHARED(Quad, shared);
  const engine::Pass& pass = args.pass;
  const int64_t dim = args.net.inputs(), classes = args.net.classes();
  const Samples<kTile> samples(args.net, args.packed, shared);
  constexpr int kCount = Samples<kTile>::kCount;
  for (int64_t first = blockIdx.x * int64_t(kCount); first < pass.batch; first += gridDim.x * int64_t(kCount)) {
    samples.by_warps([&](int s) {
      if (first + s < pass.batch) copy_row(samples.input(s), pass.x + (first + s) * dim, dim);
    });
    __syncthreads();  // the points are here
    samples.forward();
    samples.by_warps([&](int s) {
      const int64_t b = first + s;
      if (b >= pass.batch) return;
      if (pass.logits) copy_row(pass.logits + b * classes, samples.logits(s), classes);
      if (!pass.loss) return;
      LogitLoss a = at_sample(args.loss, b, classes);
      a.loss = static_cast<float*>(a.loss) + b;
      a.prediction += b;
      a.correct += b;
      samples.lose(a, s);
    });
    if (!pass.loss || !pass.grad) continue;
    __syncthreads();  // the slopes are known
    samples.backward();
    samples.by_warps([&](int s) {
      if (first + s < pass.batch) copy_row(pass.grad + (first + s) * dim, samples.gradient(s), dim);
    });
  }
}

// Linf: warps share out the samples' elements, so that few samples keep all warps busy.
template <int kTile>
__device__ __forceinline__ void step_linf(const Samples<kTile>& samples, const PgdStep& a, int64_t first) {
  constexpr int kPacks = 4, kSpan = kPacks * kWarp, kCount = Samples<kTile>::kCount;
  const int dim = static_cast<int>(a.dim), lane = threadIdx.x % kWarp;
  const int items = (dim + kSpan - 1) / kSpan * kCount;
  const float *lows = static_cast<const float*>(a.ball.lo_each), *highs = static_cast<const float*>(a.ball.hi_each);
  const float low = cast_up<float>(a.ball.lo), high = cast_down<float>(a.ball.hi);
  for (int item = threadIdx.x / kWarp; item < items; item += blockDim.x / kWarp) {
    const int s = item % kCount, from = item / kCount * kSpan + lane;
    if (!samples.seat(s).taken) continue;
    const int64_t b = first + s;
    const float step = a.step_each ? static_cast<const float*>(a.step_each)[b] : static_cast<float>(a.step);
    const float eps = a.ball.eps_each ? static_cast<const float*>(a.ball.eps_each)[b] : cast_down<float>(a.ball.eps);
    const float *x = static_cast<const float*>(a.x) + b * a.dim, *gradient = samples.gradient(s);
    float* x_adv = samples.input(s);
    int32_t found = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int i = from + k * kWarp;
      if (i >= dim) break;
      const float g = gradient[i];
      x_adv[i] = linf_step(x_adv[i], x[i], g, step, eps, lows ? lows[i] : low, lows ? highs[i] : high);
      found |= linf_flags(g);
    }
    const int useful = __any_sync(kAllLanes, found & kUseful), odd = __any_sync(kAllLanes, found & kNonFinite);
    if (lane == 0) atomicOr(&samples.seat(s).flags, (useful ? kUseful : 0) | (odd ? kNonFinite : 0));
  }
}

// L2 and L1: a warp a sample.
template <Norm kNorm, int kTile>
__device__ __forceinline__ void step_rows(const Samples<kTile>& samples, const PgdStep& a, int64_t first) {
  samples.by_warps([&](int s) {
    if (!samples.seat(s).taken) return;
    const int64_t b = first + s;
    float* x_adv = samples.input(s);
    const Row<float, float> row{x_adv,
                                x_adv,
                                static_cast<const float*>(a.x) + b * a.dim,
                                samples.gradient(s),
                                a.dim,
                                a.step_each ? static_cast<double>(static_cast<const float*>(a.step_each)[b]) : a.step,
                                eps_of<float>(a.ball, b),
                                a.ball,
                                0.0f,
                                0.0f};
    int32_t found = 0;
    step_row<kNorm>(Warp(threadIdx.x % kWarp), row, &found);
    if (threadIdx.x % kWarp == 0) samples.seat(s).flags = found;
  });
}

template <int kTile>
__device__ __forceinline__ void step(const Samples<kTile>& samples, const PgdStep& a, int64_t first) {
  switch (a.ball.norm) {
    case Norm::linf:
      step_linf(samples, a, first);
      break;
    case Norm::l2:
      step_rows<Norm::l2>(samples, a, first);
      break;
    case Norm::l1:
      step_rows<Norm::l1>(samples, a, first);
      break;
  }
  __syncthreads();  // the points have moved
}

// Before step k: counts the gradient of the last step, judges the logits, and lets samples go. By warps; whether this
// one has a sample that goes on.
template <int kTile>
__device__ __forceinline__ int judge(const Samples<kTile>& samples, const engine::Attack& a, int64_t first, int64_t k,
                                     bool judged) {
  const bool last = k == a.steps;
  int standing = 0;
  samples.by_warps([&](int s) {
    Seat& seat = samples.seat(s);
    if (!seat.taken) return;
    const int64_t b = first + s;
    if (judged) {
      LogitLoss loss = at_sample(a.loss, b, samples.classes());
      loss.loss = &seat.loss;
      loss.prediction = &seat.prediction;
      loss.correct = &seat.correct;
      samples.lose(loss, s);
    }
    int verdict = 0;
    if (threadIdx.x % kWarp == 0) {
      if (k > 0 && a.step.flags) a.step.flags[b] += seat.flags != kUseful;
      seat.flags = 0;
      const int64_t p = seat.prediction;
      const bool fooled = judged && (a.loss.target ? p == a.loss.target[b] : p >= 0 && p != a.loss.label[b]);
      const bool leaves = last || (a.early_stop && fooled && seat.patience == 0);
      seat.patience -= fooled && seat.patience > 0;
      verdict = (fooled ? kFooled : 0) | (leaves ? kLeaves : 0);
    }
    verdict = __shfl_sync(kAllLanes, verdict, 0);
    standing |= !(verdict & kLeaves);
    if (!(verdict & kLeaves)) return;
    copy_row(static_cast<float*>(a.step.out) + b * a.step.dim, samples.input(s), a.step.dim);
    if (threadIdx.x % kWarp == 0) {
      seat.taken = false;
      if (a.success) a.success[b] = verdict & kFooled;
      if (a.value) a.value[b] = seat.loss;
      if (a.taken) a.taken[b] = k;
    }
  });
  return standing;
}

template <int kTile, bool kShared>
__global__ void __launch_bounds__(kMostThreads, 1) attack_kernel(const AttackArgs args) {
  FR_SHARED(Quad, shared);
  const engine::Attack& a = args.attack;
  const float* weights = args.packed;
  Quad* memory = shared;
  if constexpr (kShared) {
    const int quads = args.net.weights / 4;
    for (int i = threadIdx.x; i < quads; i += blockDim.x) shared[i] = quad(args.packed + 4 * i);
    weights = reinterpret_cast<const float*>(shared);
    memory += quads;
  }
  const Samples<kTile> samples(args.net, weights, memory);
  constexpr int kCount = Samples<kTile>::kCount;
  const int64_t batch = a.step.batch, dim = a.step.dim;
  const bool asked = a.success || a.value;  // for a look at the last iterate
  for (int64_t first = blockIdx.x * int64_t(kCount); first < batch; first += gridDim.x * int64_t(kCount)) {
    samples.by_warps([&](int s) {
      const bool taken = first + s < batch;
      if (taken) copy_row(samples.input(s), static_cast<const float*>(a.step.x_adv) + (first + s) * dim, dim);
      if (threadIdx.x % kWarp == 0) samples.seat(s) = Seat{-1, a.patience, 0.0f, 0, taken, false};
    });
    __syncthreads();  // all are seated
    for (int64_t k = 0;; ++k) {
      const bool judged = k < a.steps || asked;
      if (judged) samples.forward();
      if (!__syncthreads_or(judge(samples, a, first, k, judged))) break;
      samples.backward();
      step(samples, a.step, first);
    }
  }
}

int threads_for(const Net& net) {
  int widest = kLeastThreads;
  for (int l = 0; l < net.count; ++l) {
    for (int n : {net.layers[l].inputs, net.layers[l].outputs}) widest = n > widest ? n : widest;
  }
  const int whole = (widest + kWarp - 1) / kWarp * kWarp;  // a thread for each quarter of a row and group of samples
  return whole < kMostThreads ? whole : kMostThreads;
}

template <int kTile, class Args>
Ready<Args> ready(void (*kernel)(Args), const Net& net, const Device& device, bool weights) {
  const size_t bytes = Samples<kTile>::bytes(net) + (weights ? net.weights * sizeof(float) : 0);
  Ready<Args> r{kernel, Samples<kTile>::kCount, threads_for(net), bytes, 0};
  int blocks = 0;
  const bool fits =
      bytes <= static_cast<size_t>(device.shared) &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared) == cudaSuccess &&
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, r.threads, bytes) == cudaSuccess;
  if (fits)
    r.blocks = int64_t(blocks) * device.processors;
  else
    cudaGetLastError();  // a later launch is not blamed
  return r;
}

// Weights beside the activations where they fit: an attack reads them twice a step.
template <int kTile>
Ready<AttackArgs> ready_attack(const Net& net, const Device& device) {
  const auto own = ready<kTile>(attack_kernel<kTile, true>, net, device, true);
  return own.blocks ? own : ready<kTile>(attack_kernel<kTile, false>, net, device, false);
}

template <class Args>
Status launch_on(const Ready<Args>& ready, const Args& args, int64_t batch, void* stream) {
  const int64_t blocks = (batch + ready.samples - 1) / ready.samples;
  FR_LAUNCH(ready.kernel, static_cast<unsigned>(blocks < ready.blocks ? blocks : ready.blocks), ready.threads,
            ready.bytes, stream, args);
  return launched();
}

// A layer after the other; a block a row of weights.
__global__ void __launch_bounds__(kLeastThreads) pack_kernel(const PackArgs a) {
  for (int l = 0; l < a.net.count; ++l) {
    const Layer& layer = a.net.layers[l];
    const float *weight = a.weight[l], *bias = a.bias[l];
    const int columns = layer.dense ? layer.inputs : 1, row = layer.dense ? pitch(columns) : 1;
    const int outputs = layer.dense ? layer.outputs : layer.inputs / layer.pixels;
    for (int o = blockIdx.x; o < padded(outputs); o += gridDim.x) {
      for (int c = threadIdx.x; c < row; c += blockDim.x) {
        const bool inside = o < outputs && c < columns;
        a.packed[layer.weight + o * row + c] = !inside ? 0.0f : weight ? weight[o * columns + c] : 1.0f;
      }
      if (threadIdx.x == 0) a.packed[layer.bias + o] = o < outputs && bias ? bias[o] : 0.0f;
    }
  }
}

}  // namespace

Device current_device() {
  int device = 0, processors = 0, shared = 0, cache = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
  return {processors, shared, cache};
}

Choice<PassArgs> prepare_pass(const Net& net, const Device& device) {
  return {ready<kFew>(pass_kernel<kFew>, net, device, false), ready<kMany>(pass_kernel<kMany>, net, device, false)};
}

Choice<AttackArgs> prepare_attack(const Net& net, const Device& device) {
  return {ready_attack<kFew>(net, device), ready_attack<kMany>(net, device)};
}

Status pack(const PackArgs& args, void* stream) {
  FR_LAUNCH(pack_kernel, kPackBlocks, kLeastThreads, 0, stream, args);
  return launched();
}

Status launch(const Ready<PassArgs>& ready, const PassArgs& args, void* stream) {
  return launch_on(ready, args, args.pass.batch, stream);
}

Status launch(const Ready<AttackArgs>& ready, const AttackArgs& args, void* stream) {
  return launch_on(ready, args, args.attack.step.batch, stream);
}

}  // namespace fastrobust::cuda::mlp
