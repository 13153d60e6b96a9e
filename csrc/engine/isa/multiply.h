// in * in2, of one shape.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Multiply : public Layer {
 public:
  Multiply(const Op& op, int to, const Layout* at, const Route& route, const Route& route2)
      : op_(op), to_(to), in_(at[op.in]), in2_(at[op.in2]), out_(at[to]), route_(route), route2_(route2) {}

  void forward(const Block& b) const override {
    const float *x = b.value[op_.in], *y = b.value[op_.in2];
    float* out = b.value[to_];
    rows([&](int64_t i, int64_t j, int64_t k) {
      const Vec v = read(x + i) * read(y + j);
      store(out + k, op_.relu ? relu(v) : v);
    });
  }

  void backward(const Block& b) const override {
    const float *g = b.gradient[to_], *x = b.value[op_.in], *y = b.value[op_.in2];
    float *gx = b.gradient[op_.in], *gy = b.gradient[op_.in2];
    rows([&](int64_t i, int64_t j, int64_t k) { settle(route_, gx, x, i, read(g + k) * read(y + j)); });
    rows([&](int64_t i, int64_t j, int64_t k) { settle(route2_, gy, y, j, read(g + k) * read(x + i)); });
  }

 private:
  // f(place in the first input, in the second, in the result)
  template <class F>
  FR_INLINE void rows(const F& f) const {
    const int64_t n = out_.shape.w * kLanes;
    for (int64_t h = 0; h < out_.shape.h; ++h) {
      for (int64_t c = 0; c < out_.shape.c; ++c) {
        const int64_t i = in_.at(c, h, 0), j = in2_.at(c, h, 0), k = out_.at(c, h, 0);
        for (int64_t l = 0; l < n; l += kVector) f(i + l, j + l, k + l);
      }
    }
  }

  const Op& op_;
  int to_;
  Layout in_, in2_, out_;
  Route route_, route2_;
};

}  // namespace fastrobust::engine::FR_ISA
