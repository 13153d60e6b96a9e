// Rows and columns picked from the input, or zeros: padding with zeros, cropping, upsampling to the nearest.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Resample : public Layer {
 public:
  Resample(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {}

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    float* out = b.value[to_];
    places([&](int64_t i, int64_t k) {
      const Vec v = i < 0 ? Vec{} : read(x + i);
      store(out + k, op_.relu ? relu(v) : v);
    });
  }

  void backward(const Block& b) const override {
    const float *g = b.gradient[to_], *x = b.value[op_.in];
    float* gx = b.gradient[op_.in];
    if (!route_.add) each_vector(in_, [&](int64_t i) { store(gx + i, Vec{}); });
    places([&](int64_t i, int64_t k) {
      if (i >= 0) store(gx + i, read(gx + i) + read(g + k));
    });
    if (route_.mask) each_vector(in_, [&](int64_t i) { settle({false, true}, gx, x, i, read(gx + i)); });
  }

 private:
  // f(place in the input or -1, place in the result)
  template <class F>
  FR_INLINE void places(const F& f) const {
    const int64_t *row = op_.windows.row_begin.data(), *column = op_.windows.column_begin.data();
    for (int64_t h = 0; h < out_.shape.h; ++h) {
      for (int64_t c = 0; c < out_.shape.c; ++c) {
        for (int64_t w = 0; w < out_.shape.w; ++w) {
          const bool inside = row[h] >= 0 && column[w] >= 0;
          const int64_t i = inside ? in_.at(c, row[h], column[w]) : -kLanes, k = out_.at(c, h, w);
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
