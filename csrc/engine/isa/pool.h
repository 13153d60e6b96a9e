// Max and average pooling over explicit windows: any kernel, stride and padding; adaptive and global ones too.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Pool : public Layer {
 public:
  Pool(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route), largest_(op.kind == Kind::max_pool) {}

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    windows([&](int64_t at, float share, const auto& visit) __attribute__((always_inline)) {
      Vec result = largest_ ? Vec{} - __builtin_inff() : Vec{};
      visit([&](int64_t i) __attribute__((always_inline)) {
        const Vec v = read(x + i);
        result = largest_ ? larger(v, result) : result + v * share;
      });
      out.put(at, result);
    });
  }

  void backward(const Block& b) const override {
    const float *g = b.gradient[to_], *x = b.value[op_.in], *y = b.value[to_];
    float* gx = b.gradient[op_.in];
    if (!route_.add) clear(in_, gx);
    windows([&](int64_t at, float share, const auto& visit) __attribute__((always_inline)) {
      const Vec slope = read(g + at), best = read(y + at);
      Mask left = Mask{} - 1;  // lanes whose largest element was not met yet: the first of equals takes all
      visit([&](int64_t i) __attribute__((always_inline)) {
        const Mask here = (read(x + i) == best) & left;
        left &= ~here;
        store(gx + i, read(gx + i) + (largest_ ? where(here, slope, Vec{}) : slope * share));
      });
    });
    if (route_.mask) apply_mask(in_, b.slope(op_.in, {false, true}));
  }

  bool has_boxes() const override { return true; }
  void boxes(const Block& b) const override {
    const PairSink out = boxes_of(b, op_, to_);
    if (!largest_) {
      const Factors factors(widening(b, to_));
      windows([&](int64_t at, float share, const auto& visit) __attribute__((always_inline)) {
        Vec centre{}, radius{};
        visit([&](int64_t i) __attribute__((always_inline)) {
          const Pair x = read_box(b, op_.in, i);
          centre += x.centre * share;
          radius += factors.widened(x.radius, x.centre) * magnitude(Vec{} + share);
        });
        out.put(at, {centre, up(radius * factors.sum)});
      });
      return;
    }
    windows([&](int64_t at, float, const auto& visit) __attribute__((always_inline)) {
      Vec low = Vec{} - __builtin_inff(), high = low;
      visit([&](int64_t i) __attribute__((always_inline)) {
        const Pair x = read_box(b, op_.in, i);
        low = larger(x.low(), low);
        high = larger(x.high(), high);
      });
      out.put(at, Pair::between(low, high));
    });
  }

 private:
  static FR_INLINE Vec larger(Vec v, Vec than) { return where((v > than) | (v != v), v, than); }  // NaN wins

  // f(place in the result, 1 / divisor, visit), where visit(g) calls g(place in the input) over the window.
  template <class F>
  FR_INLINE void windows(const F& f) const {
    const Windows& w = op_.windows;
    const float* divisors = w.divisor.data();
    for (int64_t h = 0; h < out_.shape.h; ++h) {
      const int64_t top = w.row_begin.data()[h], bottom = w.row_end.data()[h];
      for (int64_t c = 0; c < out_.shape.c; ++c) {
        for (int64_t j = 0; j < out_.shape.w; ++j) {
          const int64_t begin = w.column_begin.data()[j], end = w.column_end.data()[j];
          const float share = largest_ ? 1.0f : 1.0f / divisors[h * out_.shape.w + j];
          for (int64_t l = 0; l < kLanes; l += kVector) {
            f(out_.at(c, h, j) + l, share, [&](const auto& g) __attribute__((always_inline)) {
              for (int64_t y = top; y < bottom; ++y) {
                for (int64_t x = begin; x < end; ++x) g(in_.at(c, y, x) + l);
              }
            });
          }
        }
      }
    }
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
  bool largest_;
};

}  // namespace fastrobust::engine::FR_ISA
