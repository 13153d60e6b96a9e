// x * scale + shift by channel, or x itself; with or without a ReLU.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Affine : public Layer {
 public:
  Affine(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {
    scale_.resize(in_.shape.c);
    shift_.resize(in_.shape.c);
    for (int64_t c = 0; c < in_.shape.c; ++c) {
      scale_[c] = 1.0f;
      shift_[c] = 0.0f;
    }
  }

  void load(const float* const* tensors) override {
    for (int64_t c = 0; c < in_.shape.c; ++c) {
      if (op_.weight >= 0) scale_[c] = tensors[op_.weight][c];
      if (op_.bias >= 0) shift_[c] = tensors[op_.bias][c];
    }
  }

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    each_vector(
        out_.shape, [&](int64_t c, int64_t i, int64_t k) { out.put(k, read(x + i) * scale_[c] + shift_[c]); }, in_,
        out_);
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    const Sink gx = b.slope(op_.in, route_);
    each_vector(out_.shape, [&](int64_t c, int64_t i, int64_t k) { gx.put(i, read(g + k) * scale_[c]); }, in_, out_);
  }

 private:
  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
  Array<float> scale_, shift_;
};

}  // namespace fastrobust::engine::FR_ISA
