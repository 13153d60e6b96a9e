// Elements picked from the input, or zeros: reshapes, permutations, padding with zeros, cropping, upsampling to the
// nearest.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Rearrange : public Layer {
 public:
  Rearrange(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {
    Array<bool> used;
    used.resize(in_.shape.size());
    for (bool& u : used) u = false;
    const int64_t* source = op.source.data();
    for (int64_t i = 0; i < out_.shape.size(); ++i) {
      moves_.push({source[i] < 0 ? -1 : place(in_, source[i]), place(out_, i)});
      if (source[i] < 0) continue;
      once_ &= !used[source[i]];
      used[source[i]] = true;
    }
    for (bool u : used) once_ &= u;
  }

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    for (const Move& m : moves_) {
      for (int64_t l = 0; l < kLanes; l += kVector) out.put(m.to + l, m.from < 0 ? Vec{} : read(x + m.from + l));
    }
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    if (!once_ && !route_.add) clear(in_, b.gradient[op_.in]);
    const Sink gx = b.slope(op_.in, once_ ? route_ : Route{true, false});
    for (const Move& m : moves_) {
      for (int64_t l = 0; l < kLanes && m.from >= 0; l += kVector) gx.put(m.from + l, read(g + m.to + l));
    }
    if (!once_ && route_.mask) apply_mask(in_, b.slope(op_.in, {false, true}));
  }

  bool has_boxes() const override { return true; }
  void boxes(const Block& b) const override { same_for_both(b, op_, to_, out_); }

 private:
  struct Move {
    int64_t from, to;  // places; -1 for a zero
  };

  // Of element i in the order channel, row, column.
  static int64_t place(const Layout& l, int64_t i) {
    const int64_t pixels = l.shape.h * l.shape.w;
    return l.at(i / pixels, i % pixels / l.shape.w, i % l.shape.w);
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
  Array<Move> moves_;
  bool once_ = true;  // whether each element of the input goes to one place
};

}  // namespace fastrobust::engine::FR_ISA
