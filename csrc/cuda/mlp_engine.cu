// The engine of fully connected networks: from the tape to what the kernels take, and the weights' memory.
#include <new>
#include <stdexcept>
#include <string>

#include "engine/check.h"
#include "fastrobust/mlp.h"
#include "launch.cuh"
#include "mlp_net.h"

namespace fastrobust::cuda {
namespace {

using namespace mlp;
using engine::Kind;
using engine::Op;
using engine::Shape;

constexpr const char* kKinds[] = {"contract", "add",       "affine",     "relu",     "max_pool",
                                  "avg_pool", "rearrange", "activation", "multiply", "concat"};

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument("the CUDA engine " + why); }

// On one pixel, without a border, a kernel is 1 x 1.
bool linear(const Op& op, const Shape& in) {
  return in.h == 1 && in.w == 1 && op.pad_h == 0 && op.pad_w == 0 && op.groups == 1;
}

// Whether elements stay where they are: a flatten.
bool flat(const Op& op) {
  for (size_t i = 0; i < op.source.size(); ++i) {
    if (op.source[i] != static_cast<int64_t>(i)) return false;
  }
  return op.kind == Kind::rearrange;
}

// Which tensors a layer reads; -1: none.
struct Tensors {
  int weight, bias;
};

class Reader {
 public:
  explicit Reader(const engine::Tape& tape) {
    engine::check(tape);
    place(tape.values[0].size());
    for (size_t i = 0; i < tape.ops.size(); ++i) read(tape.ops[i], static_cast<int>(i), tape.values);
    if (net.count == 0) refuse("has nothing to do without a layer");
    net.values = static_cast<int32_t>(values_);
    net.weights = static_cast<int32_t>(weights_);
  }

  Net net{};
  std::vector<Tensors> tensors;  // layer by layer

 private:
  void read(const Op& op, int number, const std::vector<Shape>& values) {
    const Shape &in = values[number], &out = values[number + 1];
    const std::string name = std::string(kKinds[static_cast<int>(op.kind)]) + " (op " + std::to_string(number) + ")";
    const bool dense = op.kind == Kind::contract;
    if (op.in != number) refuse("runs layers one after another; " + name + " reads an earlier result");
    if (dense ? !linear(op, in) : !flat(op) && op.kind != Kind::affine && op.kind != Kind::relu) {
      refuse("has linear layers, affine, relu and flatten; this " + name + " is none");
    }
    if (flat(op) && !op.relu) return;
    if (net.count == kMostLayers) refuse("has room for " + std::to_string(kMostLayers) + " layers");
    Layer& layer = net.layers[net.count++];
    layer.inputs = static_cast<int32_t>(in.size());
    layer.outputs = static_cast<int32_t>(out.size());
    layer.in = static_cast<int32_t>(here_);
    place(out.size());
    layer.out = static_cast<int32_t>(here_);
    layer.pixels = static_cast<int32_t>(in.h * in.w);
    layer.dense = dense;
    layer.relu = op.relu;
    const int64_t numbers = padded(static_cast<int32_t>(dense ? out.c : in.c));
    layer.weight = take(dense ? numbers * pitch(layer.inputs) : numbers);
    layer.bias = take(numbers);
    tensors.push_back(flat(op) ? Tensors{-1, -1} : Tensors{op.weight, op.bias});
  }

  // Room for a value of so many features, at here_.
  void place(int64_t size) {
    here_ = values_;
    values_ = small(values_ + pitch(static_cast<int32_t>(small(size))));
  }
  int32_t take(int64_t floats) {
    const int64_t at = weights_;
    weights_ = small(weights_ + floats);
    return static_cast<int32_t>(at);
  }
  static int64_t small(int64_t floats) {
    if (floats > INT32_MAX / 64) refuse("is for small networks; this one is far too large");
    return floats;
  }

  int64_t here_ = 0, values_ = 0, weights_ = 0;
};

}  // namespace

struct MlpEngine::State {
  explicit State(const engine::Tape& tape) {
    const Reader reader(tape);
    net = reader.net;
    tensors = reader.tensors;
    const Device device = current_device();
    processors = device.processors;
    passes = prepare_pass(net, device);
    attacks = prepare_attack(net, device);
    const auto bytes = net.weights * sizeof(float);
    if (!passes.few.blocks || !attacks.few.blocks) {
      refuse("keeps four samples' activations in shared memory; that takes " + std::to_string(passes.few.bytes) +
             " bytes, this device has " + std::to_string(device.shared));
    }
    if (bytes > static_cast<size_t>(device.cache)) {
      refuse("keeps the weights in the L2 cache; they take " + std::to_string(bytes) + " bytes, this device has " +
             std::to_string(device.cache));
    }
    if (cudaMalloc(&packed, bytes) != cudaSuccess) {
      cudaGetLastError();
      throw std::bad_alloc();
    }
  }
  ~State() { cudaFree(packed); }

  Net net;
  std::vector<Tensors> tensors;
  int64_t processors;
  Choice<PassArgs> passes;
  Choice<AttackArgs> attacks;
  float* packed = nullptr;
  bool loaded = false;
};

MlpEngine::MlpEngine(const engine::Tape& tape) : state_(std::make_unique<State>(tape)) {}
MlpEngine::~MlpEngine() = default;

Status MlpEngine::load(const std::vector<const float*>& tensors, void* stream) {
  State& s = *state_;
  PackArgs args{s.net, {}, {}, s.packed};
  for (int l = 0; l < s.net.count; ++l) {
    const auto tensor = [&](int number) { return number < 0 ? nullptr : tensors.at(static_cast<size_t>(number)); };
    args.weight[l] = tensor(s.tensors[static_cast<size_t>(l)].weight);
    args.bias[l] = tensor(s.tensors[static_cast<size_t>(l)].bias);
  }
  s.loaded = true;
  return pack(args, stream);
}

Status MlpEngine::run(const engine::Pass& pass, void* stream) const {
  const State& s = *state_;
  if (!s.loaded) throw std::logic_error("engine: load() comes first");
  if (pass.batch == 0) return Status::ok;
  const PassArgs args{s.net, s.packed, pass, pass.loss ? *pass.loss : LogitLoss{}};
  return launch(s.passes.serving(pass.batch, s.processors), args, stream);
}

Status MlpEngine::attack(const engine::Attack& attack, void* stream) const {
  if (attack.best) return Status::bad_value;  // the last iterate only
  const State& s = *state_;
  if (!s.loaded) throw std::logic_error("engine: load() comes first");
  if (attack.step.batch == 0) return Status::ok;
  return launch(s.attacks.serving(attack.step.batch, s.processors), AttackArgs{s.net, s.packed, attack}, stream);
}

std::unique_ptr<MlpEngine> make_mlp(const engine::Tape& tape) { return std::make_unique<MlpEngine>(tape); }

int64_t MlpEngine::workspace() const { return static_cast<int64_t>(state_->passes.few.bytes); }

}  // namespace fastrobust::cuda
