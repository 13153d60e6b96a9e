// The channels of in, then those of in2.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Concat : public Layer {
 public:
  Concat(const Op& op, int to, const Layout* at, const Route& route, const Route& route2)
      : op_(op), to_(to), in_(at[op.in]), in2_(at[op.in2]), out_(at[to]), route_(route), route2_(route2) {}

  void forward(const Block& b) const override {
    const Sink out = b.result(op_, to_);
    const auto copy = [&](const float* x) { return [=](int64_t i, int64_t k) { out.put(k, read(x + i)); }; };
    rows(in_, 0, copy(b.value[op_.in]));
    rows(in2_, in_.shape.c, copy(b.value[op_.in2]));
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    const auto split = [&](const Sink& gx) { return [=](int64_t i, int64_t k) { gx.put(i, read(g + k)); }; };
    rows(in_, 0, split(b.slope(op_.in, route_)));
    rows(in2_, in_.shape.c, split(b.slope(op_.in2, route2_)));
  }

 private:
  // f(place in the input, in the result), where the input's first channel is the result's `first`
  template <class F>
  FR_INLINE void rows(const Layout& in, int64_t first, const F& f) const {
    const int64_t shift = first * out_.channel();
    each_vector(in.shape, [&](int64_t, int64_t i, int64_t k) { f(i, k + shift); }, in, out_);
  }

  const Op& op_;
  int to_;
  Layout in_, in2_, out_;
  Route route_, route2_;
};

}  // namespace fastrobust::engine::FR_ISA
