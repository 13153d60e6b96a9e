// A fully connected network as the kernels of mlp.cu take it, and their launchers.
#pragma once
#include "common/math.h"
#include "fastrobust/engine.h"

namespace fastrobust::cuda::mlp {

constexpr int kMostLayers = 16;

// Rows of weights and of activations lie an odd number of 16 bytes apart: neighbouring threads, which read neighbouring
// rows, then meet different banks of shared memory. What lies between the rows is zero.
FR_HD int32_t padded(int32_t n) { return (n + 3) / 4 * 4; }
FR_HD int32_t pitch(int32_t n) { return ((n + 3) / 4 | 1) * 4; }

// weight * in + bias, or, if not `dense`, scale * in + shift element by element; then, with `relu`, max(., 0).
struct Layer {
  int32_t inputs, outputs;
  int32_t in, out;       // where a sample's values begin, counted in floats of one sample
  int32_t weight, bias;  // where they lie in the packed weights: padded(outputs) rows and numbers if dense
  int32_t pixels;        // not dense: elements that share a scale and a shift
  bool dense, relu;
};

struct Net {
  Layer layers[kMostLayers];
  int32_t count;
  int32_t values;   // floats of a sample's values, layer by layer
  int32_t weights;  // floats of all packed weights

  FR_HD int32_t inputs() const { return layers[0].inputs; }
  FR_HD int32_t classes() const { return layers[count - 1].outputs; }
};

struct PackArgs {
  Net net;
  const float* weight[kMostLayers];  // null: a scale of ones
  const float* bias[kMostLayers];    // null: zeros
  float* packed;
};
struct PassArgs {
  Net net;
  const float* packed;
  engine::Pass pass;
  LogitLoss loss;  // what pass.loss points to
};
struct AttackArgs {
  Net net;
  const float* packed;
  engine::Attack attack;
};

// What a device offers.
struct Device {
  int processors, shared, cache;  // bytes of shared memory that a block may have, and of L2 cache
};
Device current_device();

// A kernel ready to be launched on blocks of so many samples; `blocks` run at a time, 0 if its memory does not fit.
template <class Args>
struct Ready {
  void (*kernel)(Args);
  int samples, threads;
  size_t bytes;
  int64_t blocks;
};

// Two sizes of blocks: few samples leave no processor idle, many read the weights less often.
template <class Args>
struct Choice {
  Ready<Args> few, many;
  const Ready<Args>& serving(int64_t batch, int64_t processors) const {
    return many.blocks && batch >= many.samples * processors ? many : few;
  }
};

Choice<PassArgs> prepare_pass(const Net& net, const Device& device);
Choice<AttackArgs> prepare_attack(const Net& net, const Device& device);

Status pack(const PackArgs& args, void* stream);
Status launch(const Ready<PassArgs>& ready, const PassArgs& args, void* stream);
Status launch(const Ready<AttackArgs>& ready, const AttackArgs& args, void* stream);

}  // namespace fastrobust::cuda::mlp
