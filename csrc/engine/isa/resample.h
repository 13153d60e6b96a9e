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
    const Sink out = b.result(op_, to_);
    places([&](int64_t i, int64_t k) { out.put(k, i < 0 ? Vec{} : read(x + i)); });
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    const Sink gx = b.slope(op_.in, {true, false});
    if (!route_.add) clear(in_, gx.to);
    places([&](int64_t i, int64_t k) {
      if (i >= 0) gx.put(i, read(g + k));
    });
    if (route_.mask) apply_mask(in_, b.slope(op_.in, {false, true}));
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
