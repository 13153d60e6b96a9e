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
    const Sink out = b.result(op_, to_);
    each_vector(
        out_.shape, [&](int64_t, int64_t i, int64_t j, int64_t k) { out.put(k, read(x + i) * read(y + j)); }, in_, in2_,
        out_);
  }

  void backward(const Block& b) const override {
    const float *g = b.gradient[to_], *x = b.value[op_.in], *y = b.value[op_.in2];
    // One after the other: the two inputs may be one value.
    const Sink gx = b.slope(op_.in, route_), gy = b.slope(op_.in2, route2_);
    each_vector(
        out_.shape, [&](int64_t, int64_t i, int64_t j, int64_t k) { gx.put(i, read(g + k) * read(y + j)); }, in_, in2_,
        out_);
    each_vector(
        out_.shape, [&](int64_t, int64_t i, int64_t j, int64_t k) { gy.put(j, read(g + k) * read(x + i)); }, in_, in2_,
        out_);
  }

 private:
  const Op& op_;
  int to_;
  Layout in_, in2_, out_;
  Route route_, route2_;
};

}  // namespace fastrobust::engine::FR_ISA
