// Channels, rows and columns as features, in this order.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Flatten : public Layer {
 public:
  Flatten(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {}

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    places([&](int64_t i, int64_t k) { out.put(k, read(x + i)); });
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    const Sink gx = b.slope(op_.in, route_);
    places([&](int64_t i, int64_t k) { gx.put(i, read(g + k)); });
  }

 private:
  // f(place in the input, in the result)
  template <class F>
  FR_INLINE void places(const F& f) const {
    const Shape& s = in_.shape;
    for (int64_t h = 0; h < s.h; ++h) {
      for (int64_t c = 0; c < s.c; ++c) {
        for (int64_t w = 0; w < s.w; ++w) {
          const int64_t i = in_.at(c, h, w), k = out_.at((c * s.h + h) * s.w + w, 0, 0);
          for (int64_t l = 0; l < kLanes; l += kVector) f(i + l, k + l);
        }
      }
    }
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
};

}  // namespace fastrobust::engine::FR_ISA
