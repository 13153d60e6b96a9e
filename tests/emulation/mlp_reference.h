// Fully connected networks, sample by sample in plain loops: what the engine of csrc/cuda/mlp.cu must compute.
#pragma once
#include <cmath>

#include "check.h"
#include "fastrobust/engine.h"

namespace check {

namespace engine = fastrobust::engine;

// A tape with its tensors, written layer by layer.
struct Network {
  engine::Tape tape;
  std::vector<std::vector<float>> tensors;

  explicit Network(engine::Shape input) { tape.values = {input}; }

  Network& linear(int64_t outputs, bool relu, bool bias = true) {
    const int64_t inputs = tape.values.back().size();
    engine::Op& op = push(engine::Kind::contract, {outputs, 1, 1}, relu);
    op.weight = tensor(outputs * inputs, 2.0 / std::sqrt(double(inputs)), 0.0);
    if (bias) op.bias = tensor(outputs, 0.5, 0.0);
    return *this;
  }
  Network& affine(bool scale, bool shift, bool relu = false) {
    const int64_t channels = tape.values.back().c;
    engine::Op& op = push(engine::Kind::affine, tape.values.back(), relu);
    if (scale) op.weight = tensor(channels, 0.5, 1.0);
    if (shift) op.bias = tensor(channels, 0.5, 0.0);
    return *this;
  }
  Network& relu() {
    push(engine::Kind::relu, tape.values.back(), true);
    return *this;
  }
  Network& flatten(bool relu = false) {
    const int64_t size = tape.values.back().size();
    engine::Op& op = push(engine::Kind::rearrange, {size, 1, 1}, relu);
    for (int64_t i = 0; i < size; ++i) op.source.push_back(i);
    return *this;
  }

  engine::Op& push(engine::Kind kind, engine::Shape out, bool relu) {
    engine::Op op{};
    op.kind = kind;
    op.in = static_cast<int>(tape.ops.size());
    op.in2 = op.weight = op.bias = -1;
    op.relu = relu;
    op.kh = op.kw = op.stride_h = op.stride_w = op.dilation_h = op.dilation_w = op.groups = 1;
    tape.ops.push_back(op);
    tape.values.push_back(out);
    return tape.ops.back();
  }
  int tensor(int64_t size, double spread, double middle) {
    tensors.emplace_back();
    for (int64_t i = 0; i < size; ++i) tensors.back().push_back(float(middle + uniform(-spread, spread)));
    tape.tensors.push_back(size);
    return static_cast<int>(tensors.size()) - 1;
  }

  std::vector<const float*> addresses() const {
    std::vector<const float*> list;
    for (const auto& t : tensors) list.push_back(t.data());
    return list;
  }
  int64_t inputs() const { return tape.values.front().size(); }
  int64_t classes() const { return tape.values.back().size(); }

  // Every value of a sample. Z is float, for the engine's own bits, or double.
  template <class Z>
  std::vector<std::vector<Z>> forward(const float* x) const {
    std::vector<std::vector<Z>> values{std::vector<Z>(x, x + inputs())};
    for (size_t i = 0; i < tape.ops.size(); ++i) {
      const engine::Op& op = tape.ops[i];
      const std::vector<Z>& in = values.back();
      std::vector<Z> out(tape.values[i + 1].size());
      for (size_t o = 0; o < out.size(); ++o) {
        if (op.kind == engine::Kind::contract) {
          Z sum = op.bias < 0 ? 0 : tensors[op.bias][o];
          for (size_t c = 0; c < in.size(); ++c) sum = std::fma(in[c], Z(tensors[op.weight][o * in.size() + c]), sum);
          out[o] = sum;
        } else {
          out[o] = std::fma(in[o], Z(scale(i, o)), op.bias < 0 ? Z(0) : Z(tensors[op.bias][channel(i, o)]));
        }
        if (op.relu && out[o] < 0) out[o] = 0;
      }
      values.push_back(std::move(out));
    }
    return values;
  }

  // The gradient of the input from that of the logits.
  template <class Z>
  std::vector<Z> backward(const std::vector<std::vector<Z>>& values, std::vector<Z> g) const {
    for (size_t i = tape.ops.size(); i-- > 0;) {
      const engine::Op& op = tape.ops[i];
      for (size_t o = 0; op.relu && o < g.size(); ++o) g[o] = values[i + 1][o] > 0 ? g[o] : 0;
      std::vector<Z> to(values[i].size(), Z(0));
      for (size_t c = 0; c < to.size(); ++c) {
        if (op.kind == engine::Kind::contract) {
          for (size_t o = 0; o < g.size(); ++o) to[c] = std::fma(g[o], Z(tensors[op.weight][o * to.size() + c]), to[c]);
        } else {
          to[c] = g[c] * Z(scale(i, c));
        }
      }
      g = std::move(to);
    }
    return g;
  }

 private:
  size_t channel(size_t i, size_t element) const { return element / (tape.values[i].h * tape.values[i].w); }
  float scale(size_t i, size_t element) const {
    const engine::Op& op = tape.ops[i];
    return op.weight < 0 ? 1.0f : tensors[op.weight][channel(i, element)];
  }
};

}  // namespace check
