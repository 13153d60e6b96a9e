// x * scale + shift by channel, or x itself; with or without a ReLU.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Affine : public Layer {
 public:
  Affine(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {
    scale_.resize(in_.shape.c * kLanes);
    shift_.resize(in_.shape.c * kLanes);
    for (float& scale : scale_) scale = 1.0f;
    for (float& shift : shift_) shift = 0.0f;
  }

  void load(const float* const* tensors) override {
    const int64_t apart = in_.channels == in_.shape.c ? kLanes : 1;  // lanes are samples, or channels
    for (int64_t c = 0; c < in_.channels; ++c) {
      for (int64_t i = c * apart; i < (c + 1) * apart; ++i) {
        if (op_.weight >= 0) scale_[i] = tensors[op_.weight][c];
        if (op_.bias >= 0) shift_[i] = tensors[op_.bias][c];
      }
    }
  }

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    each_vector(
        out_.shape,
        [&](int64_t c, int64_t i, int64_t k) { out.put(k, read(x + i) * of(scale_, c, i) + of(shift_, c, i)); }, in_,
        out_);
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    const Sink gx = b.slope(op_.in, route_);
    each_vector(
        out_.shape, [&](int64_t c, int64_t i, int64_t k) { gx.put(i, read(g + k) * of(scale_, c, i)); }, in_, out_);
  }

  bool has_boxes() const override { return true; }
  void boxes(const Block& b) const override {
    const PairSink out = boxes_of(b, op_, to_);
    const Widening w = widening(b, to_);
    const Factors factors(w);
    each_vector(
        out_.shape,
        [&](int64_t c, int64_t i, int64_t k) {
          const Pair x = read_box(b, op_.in, i);
          const Vec scale = of(scale_, c, i);
          const Vec sum = factors.widened(x.radius, x.centre) * magnitude(scale);
          out.put(k, {x.centre * scale + of(shift_, c, i), up(sum * factors.sum + (w.slack ? w.slack[c] : 0.0f))});
        },
        in_, out_);
  }

 private:
  // For the vector at a place of channel c.
  static FR_INLINE Vec of(const Array<float>& factors, int64_t c, int64_t place) {
    return read_anywhere(factors.data() + c * kLanes + static_cast<uint64_t>(place) % kLanes);
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
  Array<float> scale_, shift_;  // 16 a channel, or a group of channels
};

}  // namespace fastrobust::engine::FR_ISA
