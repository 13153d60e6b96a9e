// A block and its samples: a fully connected network forwards and backwards in shared memory.
//
// A sample's values lie in rows. Neighbouring threads take neighbouring samples, kGroups of them, and neighbouring rows
// of weights; a thread holds the sums of kTile samples and kOutputs outputs in registers. Each sum runs over the inputs
// in their order, by one thread: so its bits do not depend on the sizes of blocks and tiles.
#pragma once
#include "../common/logit.h"
#include "mlp_net.h"
#include "team.cuh"

namespace fastrobust::cuda::mlp {

constexpr int kGroups = 4, kOutputs = 4;

struct alignas(16) Quad {
  float v[4];
};
__device__ __forceinline__ Quad quad(const float* p) { return *reinterpret_cast<const Quad*>(p); }

// A sample's place in the block, and what is known about who sits there.
struct Seat {
  int64_t prediction, patience;
  float loss;
  int32_t flags;
  bool taken, correct;
};

template <int kTile>
class Samples {
 public:
  static constexpr int kCount = kGroups * kTile;

  static size_t floats(const Net& net) {
    return static_cast<size_t>(net.values + pitch(net.classes()) + pitch(net.inputs())) * kCount;
  }
  static size_t bytes(const Net& net) { return floats(net) * sizeof(float) + kCount * sizeof(Seat); }

  // Clears the memory: what is not written later stays zero.
  __device__ Samples(const Net& net, const float* weights, Quad* memory)
      : net_(net),
        weights_(weights),
        values_(reinterpret_cast<float*>(memory)),
        slope_(values_ + net.values * kCount),
        gradient_(slope_ + pitch(net.classes()) * kCount),
        seats_(reinterpret_cast<Seat*>(gradient_ + pitch(net.inputs()) * kCount)) {
    for (float* p = values_ + threadIdx.x; p < reinterpret_cast<float*>(seats_); p += blockDim.x) *p = 0.0f;
    __syncthreads();  // nobody writes before all is cleared
  }

  // Rows of the block's samples; s is a sample's seat.
  __device__ float* input(int s) const { return values_ + s * pitch(net_.inputs()); }
  __device__ float* gradient(int s) const { return gradient_ + s * pitch(net_.inputs()); }
  __device__ float* slope(int s) const { return slope_ + s * pitch(net_.classes()); }
  __device__ const float* logits(int s) const {
    return values_ + net_.layers[net_.count - 1].out * kCount + s * pitch(net_.classes());
  }
  __device__ Seat& seat(int s) const { return seats_[s]; }
  __device__ int64_t classes() const { return net_.classes(); }

  // f(s) for each seat, by one warp, always the same one.
  template <class F>
  __device__ __forceinline__ void by_warps(const F& f) const {
    for (int s = threadIdx.x / kWarp; s < kCount; s += blockDim.x / kWarp) f(s);
  }

  __device__ __forceinline__ void forward() const {
    for (int l = 0; l < net_.count; ++l) {
      const Layer& layer = net_.layers[l];
      if (layer.dense)
        multiply(layer);
      else
        scale(layer);
      __syncthreads();  // the next layer reads what others wrote
    }
  }

  // From slope() to gradient(). The gradient of a value in between takes its place.
  __device__ __forceinline__ void backward() const {
    for (int l = net_.count - 1; l >= 0; --l) {
      const Layer& layer = net_.layers[l];
      const float* from = l == net_.count - 1 ? slope_ : values_ + layer.out * kCount;
      float* to = l == 0 ? gradient_ : values_ + layer.in * kCount;
      const bool masked = l > 0 && net_.layers[l - 1].relu;
      if (layer.dense)
        multiply_back(layer, from, to, masked);
      else
        scale_back(layer, from, to, masked);
      __syncthreads();  // so does the layer before
    }
  }

  // The loss of seat s by a warp: logits to slope. Pointers into the batch stand at the sample.
  __device__ __forceinline__ void lose(LogitLoss a, int s) const {
    const Warp warp(threadIdx.x % kWarp);
    const float* z = logits(s);
    float* g = slope(s);
    a.logits = z;
    a.grad = g;
    a.classes = net_.classes();
    a.invalid = nullptr;
    logit_row<Warp, float>(warp, a, 0);
    if (net_.layers[net_.count - 1].relu) warp.each(a.classes, [=](int64_t i) { g[i] = masked_by(z[i], g[i]); });
  }

 private:
  static __device__ float relu(float v) { return v < 0.0f ? 0.0f : v; }  // NaN stays NaN
  static __device__ float masked_by(float value, float g) { return value > 0.0f ? g : 0.0f; }

  // Outputs q, q + rows, q + 2 rows and q + 3 rows, where `rows` is a quarter of them.
  __device__ __forceinline__ void multiply(const Layer& layer) const {
    const int row = pitch(layer.inputs), out_row = pitch(layer.outputs), rows = padded(layer.outputs) / kOutputs;
    const int group = threadIdx.x % kGroups;
    const float* in = values_ + layer.in * kCount + group * row;
    float* out = values_ + layer.out * kCount + group * out_row;
    for (int q = threadIdx.x / kGroups; q < rows; q += blockDim.x / kGroups) {
      const float *w = weights_ + layer.weight + q * row, *bias = weights_ + layer.bias + q;
      float sum[kTile][kOutputs];
#pragma unroll
      for (int k = 0; k < kOutputs; ++k) {
        const float b = bias[k * rows];
#pragma unroll
        for (int j = 0; j < kTile; ++j) sum[j][k] = b;
      }
#pragma unroll 2
      for (int c = 0; c < layer.inputs; c += 4) {
        Quad x[kTile], v[kOutputs];
#pragma unroll
        for (int k = 0; k < kOutputs; ++k) v[k] = quad(w + k * rows * row + c);
#pragma unroll
        for (int j = 0; j < kTile; ++j) x[j] = quad(in + j * kGroups * row + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < kTile; ++j) {
#pragma unroll
            for (int k = 0; k < kOutputs; ++k) sum[j][k] = fmaf(x[j].v[i], v[k].v[i], sum[j][k]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kOutputs; ++k) {
        const int o = q + k * rows;
        if (o >= layer.outputs) continue;
#pragma unroll
        for (int j = 0; j < kTile; ++j) out[j * kGroups * out_row + o] = layer.relu ? relu(sum[j][k]) : sum[j][k];
      }
    }
  }

  // Inputs c, c + 1, c + 2 and c + 3.
  __device__ __forceinline__ void multiply_back(const Layer& layer, const float* from, float* to, bool masked) const {
    const int row = pitch(layer.inputs), out_row = pitch(layer.outputs);
    const int group = threadIdx.x % kGroups;
    const float *g = from + group * out_row, *w = weights_ + layer.weight;
    float* out = to + group * row;
    for (int c = threadIdx.x / kGroups * 4; c < layer.inputs; c += blockDim.x / kGroups * 4) {
      float sum[kTile][4] = {};
#pragma unroll 2
      for (int o = 0; o < layer.outputs; o += 4) {
        Quad slope[kTile], v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = quad(w + (o + i) * row + c);
#pragma unroll
        for (int j = 0; j < kTile; ++j) slope[j] = quad(g + j * kGroups * out_row + o);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < kTile; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[j][k] = fmaf(slope[j].v[i], v[i].v[k], sum[j][k]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (c + k >= layer.inputs) continue;
#pragma unroll
        for (int j = 0; j < kTile; ++j) {
          float* place = out + j * kGroups * row + c + k;
          *place = masked ? masked_by(*place, sum[j][k]) : sum[j][k];
        }
      }
    }
  }

  __device__ __forceinline__ void scale(const Layer& layer) const {
    each_element(layer, [&](int i, int at) {
      const float *w = weights_ + i / layer.pixels, v = values_[layer.in * kCount + at];
      const float result = fmaf(v, w[layer.weight], w[layer.bias]);
      values_[layer.out * kCount + at] = layer.relu ? relu(result) : result;
    });
  }

  __device__ __forceinline__ void scale_back(const Layer& layer, const float* from, float* to, bool masked) const {
    each_element(layer, [&](int i, int at) {
      const float g = from[at] * weights_[layer.weight + i / layer.pixels];
      to[at] = masked ? masked_by(to[at], g) : g;
    });
  }

  // f(i, place) for element i of each sample, by a thread.
  template <class F>
  __device__ __forceinline__ void each_element(const Layer& layer, const F& f) const {
    for (int n = threadIdx.x; n < layer.inputs * kCount; n += blockDim.x)
      f(n / kCount, n % kCount * pitch(layer.inputs) + n / kCount);
  }

  const Net& net_;
  const float* weights_;
  float *values_, *slope_, *gradient_;
  Seat* seats_;
};

}  // namespace fastrobust::cuda::mlp
