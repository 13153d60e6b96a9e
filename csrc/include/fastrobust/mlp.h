// Fully connected networks on a CUDA device: forwards, backwards to the input, and whole attacks, one launch each.
//
// Contract. The tape is a chain of linear layers (contract with a 1 x 1 kernel on 1 x 1 pixels and one group), affine
// and relu, with flatten anywhere; its weights must fit in the device's L2 cache, and the activations of four samples
// in a block's shared memory. Arrays lie in device memory. Calls do not synchronise, and a CUDA graph may hold them:
// load() writes the new weights where the old ones were. Calls on one engine want one stream, or an order that the
// caller sees to. A sample's results depend neither on the batch nor on its place in it.
#pragma once
#include "fastrobust/engine.h"

namespace fastrobust::cuda {

class MlpEngine {
 public:
  explicit MlpEngine(const engine::Tape& tape);  // see make_mlp
  ~MlpEngine();

  Status load(const std::vector<const float*>& tensors, void* stream);  // copies their values
  Status run(const engine::Pass& pass, void* stream) const;
  Status attack(const engine::Attack& attack, void* stream) const;
  int64_t workspace() const;  // bytes of shared memory that a block of four samples uses for its activations

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// For the current device. Throws std::invalid_argument, saying why, where the tape makes no sense, has something else
// or is too large.
std::unique_ptr<MlpEngine> make_mlp(const engine::Tape& tape);

}  // namespace fastrobust::cuda
