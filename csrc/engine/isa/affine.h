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
    float* out = b.value[to_];
    rows([&](int64_t c, int64_t i, int64_t k) {
      const Vec v = read(x + i) * scale_[c] + shift_[c];
      store(out + k, op_.relu ? relu(v) : v);
    });
  }

  void backward(const Block& b) const override {
    const float *g = b.gradient[to_], *x = b.value[op_.in];
    float* gx = b.gradient[op_.in];
    rows([&](int64_t c, int64_t i, int64_t k) { settle(route_, gx, x, i, read(g + k) * scale_[c]); });
  }

 private:
  // f(channel, place in the input, in the result)
  template <class F>
  FR_INLINE void rows(const F& f) const {
    const int64_t n = out_.shape.w * kLanes;
    for (int64_t h = 0; h < out_.shape.h; ++h) {
      for (int64_t c = 0; c < out_.shape.c; ++c) {
        const int64_t i = in_.at(c, h, 0), k = out_.at(c, h, 0);
        for (int64_t l = 0; l < n; l += kVector) f(c, i + l, k + l);
      }
    }
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
  Array<float> scale_, shift_;
};

}  // namespace fastrobust::engine::FR_ISA
