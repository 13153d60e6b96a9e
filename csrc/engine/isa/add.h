// in + alpha * in2, of one shape.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Add : public Layer {
 public:
  Add(const Op& op, int to, const Layout* at, const Route& route, const Route& route2)
      : op_(op), to_(to), in_(at[op.in]), in2_(at[op.in2]), out_(at[to]), route_(route), route2_(route2) {}

  void forward(const Block& b) const override {
    const float *x = b.value[op_.in], *y = b.value[op_.in2];
    const Sink out = b.result(op_, to_);
    each_vector(
        out_.shape,
        [&](int64_t, int64_t i, int64_t j, int64_t k) { out.put(k, read(x + i) + read(y + j) * op_.alpha); }, in_, in2_,
        out_);
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    // One after the other: the two inputs may be one value.
    const Sink gx = b.slope(op_.in, route_), gy = b.slope(op_.in2, route2_);
    each_vector(out_.shape, [&](int64_t, int64_t i, int64_t k) { gx.put(i, read(g + k)); }, in_, out_);
    each_vector(out_.shape, [&](int64_t, int64_t j, int64_t k) { gy.put(j, read(g + k) * op_.alpha); }, in2_, out_);
  }

  bool has_boxes() const override { return true; }
  void boxes(const Block& b) const override {
    const PairSink out = boxes_of(b, op_, to_);
    const Widening w = widening(b, to_);
    const Factors factors(w);
    const float alpha = op_.alpha, width = alpha < 0 ? -alpha : alpha;
    each_vector(
        out_.shape,
        [&](int64_t c, int64_t i, int64_t j, int64_t k) {
          const Pair x = read_box(b, op_.in, i), y = read_box(b, op_.in2, j);
          const Vec size = magnitude(x.centre) + magnitude(y.centre) * width;
          const Vec radius = factors.widened(x.radius + y.radius * width, size) + (w.slack ? w.slack[c] : 0.0f);
          out.put(k, {x.centre + y.centre * alpha, up(radius)});
        },
        in_, in2_, out_);
  }

 private:
  const Op& op_;
  int to_;
  Layout in_, in2_, out_;
  Route route_, route2_;
};

}  // namespace fastrobust::engine::FR_ISA
