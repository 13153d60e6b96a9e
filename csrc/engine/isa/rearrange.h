// Elements picked from the input, or zeros: reshapes, permutations, padding with zeros, cropping, upsampling to the
// nearest.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Rearrange : public Layer {
 public:
  Rearrange(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {
    const int64_t elements = in_.channels * in_.shape.h * in_.shape.w, results = static_cast<int64_t>(op.source.size());
    Array<bool> used;
    used.resize(elements);
    for (bool& u : used) u = false;
    const int64_t* source = op.source.data();
    for (int64_t i = 0; i < results; ++i) {
      moves_.push({source[i] < 0 ? -1 : in_.element(source[i]), out_.element(i)});
      if (source[i] < 0) continue;
      once_ &= !used[source[i]];
      used[source[i]] = true;
    }
    for (bool u : used) once_ &= u;
    if (in_.channels == in_.shape.c && out_.channels == out_.shape.c) return;
    for (Array<int64_t>* list : {&sources_, &targets_}) {
      list->resize((list == &sources_ ? out_ : in_).shape.size() * kLanes);
      for (int64_t& at : *list) at = -1;
    }
    for (int64_t i = 0; i < results; ++i) {
      if (source[i] < 0) continue;
      sources_[turn(out_, i)] = moves_[i].from;
      targets_[turn(in_, source[i])] = moves_[i].to;
    }
  }

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    if (sources_.size()) return gather(out_, sources_, x, out);
    for (const Move& m : moves_) {
      for (int64_t l = 0; l < kLanes; l += kVector) out.put(m.to + l, m.from < 0 ? Vec{} : read(x + m.from + l));
    }
  }

  void backward(const Block& b) const override {
    const float* g = b.gradient[to_];
    if (!once_ && !route_.add) clear(in_, b.gradient[op_.in]);
    const Sink gx = b.slope(op_.in, once_ ? route_ : Route{true, false});
    if (sources_.size() && once_) return gather(in_, targets_, g, gx);
    for (const Move& m : moves_) {
      if (m.from < 0) continue;
      if (sources_.size()) {
        gx.to[m.from] += g[m.to];
        continue;
      }
      for (int64_t l = 0; l < kLanes; l += kVector) gx.put(m.from + l, read(g + m.to + l));
    }
    if (!once_ && route_.mask) apply_mask(in_, b.slope(op_.in, {false, true}));
  }

  bool has_boxes() const override { return true; }
  void boxes(const Block& b) const override { same_for_both(b, op_, to_, out_); }

 private:
  struct Move {
    int64_t from, to;  // places; -1 for a zero
  };

  // Where lanes are channels: when element i, in the order channel, row, column, is met in the order of memory.
  static int64_t turn(const Layout& l, int64_t i) {
    const int64_t pixels = l.shape.h * l.shape.w, c = i / pixels, h = i % pixels / l.shape.w, w = i % l.shape.w;
    return ((h * l.shape.c + c / kLanes) * l.shape.w + w) * kLanes + c % kLanes;
  }

  // Elements of `from` in the order of `list`, -1 for a zero, into vectors laid out as `l`.
  static void gather(const Layout& l, const Array<int64_t>& list, const float* from, const Sink& out) {
    const int64_t* at = list.data();
    each_vector(
        l.shape,
        [&](int64_t, int64_t i) {
          float v[kVector];
          for (int k = 0; k < kVector; ++k, ++at) v[k] = *at < 0 ? 0.0f : from[*at];
          out.put(i, read_anywhere(v));
        },
        l);
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
  Array<Move> moves_;
  Array<int64_t> sources_, targets_;  // where lanes are channels: for each place of the result, and of the input
  bool once_ = true;                  // whether each element of the input goes to one place
};

}  // namespace fastrobust::engine::FR_ISA
