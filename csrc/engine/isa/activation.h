// Smooth and leaky activations: f(x) forwards, f'(x) from the same x backwards.
#pragma once
#include "../../common/activation.h"
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Activation : public Layer {
 public:
  Activation(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {}

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    const float p = op_.alpha, q = op_.beta;
    with_function(op_.function, [&](auto function) {
      each(out, [&](int64_t i, int64_t) { return value_of<decltype(function)::value>(x[i], p, q); }, out_);
    });
  }

  void backward(const Block& b) const override {
    const float *g = b.gradient[to_], *x = b.value[op_.in];
    const Sink gx = b.slope(op_.in, route_);
    const float p = op_.alpha, q = op_.beta;
    with_function(op_.function, [&](auto function) {
      each(gx, [&](int64_t i, int64_t k) { return g[k] * slope_of<decltype(function)::value>(x[i], p, q); }, in_);
    });
  }

  // The ones that never fall, from the ends.
  bool has_boxes() const override {
    switch (op_.function) {
      case Function::silu:
      case Function::gelu:
      case Function::gelu_tanh:
        return false;
      case Function::leaky_relu:
      case Function::elu:
        return op_.alpha >= 0;
      default:
        return true;
    }
  }
  void boxes(const Block& b) const override {
    const float *x = b.value[op_.in], *r = b.gradient[op_.in];
    const PairSink out = boxes_of(b, op_, to_);
    const float p = op_.alpha, q = op_.beta;
    with_function(op_.function, [&](auto function) {
      each_vector<kLanes>(
          out_.shape,
          [&](int64_t, int64_t i, int64_t k) {
            float low[kLanes], high[kLanes];
            for (int l = 0; l < kLanes; l += kVector) {
              const Pair from{read(x + i + l), read(r + i + l)};
              const Vec ends[2] = {from.low(), from.high()};
              memcpy(low + l, ends, sizeof(Vec));
              memcpy(high + l, ends + 1, sizeof(Vec));
            }
#pragma omp simd
            for (int l = 0; l < kLanes; ++l) {
              low[l] = value_of<decltype(function)::value>(low[l], p, q);
              high[l] = value_of<decltype(function)::value>(high[l], p, q);
            }
            for (int l = 0; l < kLanes; l += kVector) {
              Vec from, to;
              memcpy(&from, low + l, sizeof(from));
              memcpy(&to, high + l, sizeof(to));
              out.put(k + l, Pair::between(down(from), up(to)));
            }
          },
          in_, out_);
    });
  }

 private:
  // Puts f(place in the input, in the result) for each element into `sink`, laid out as `at`.
  template <class F>
  FR_INLINE void each(const Sink& sink, const F& f, const Layout& at) const {
    each_vector<kLanes>(
        out_.shape,
        [&](int64_t, int64_t i, int64_t k, int64_t to) {
          float v[kLanes];
#pragma omp simd
          for (int l = 0; l < kLanes; ++l) v[l] = f(i + l, k + l);
          for (int l = 0; l < kLanes; l += kVector) {
            Vec y;
            memcpy(&y, v + l, sizeof(y));
            sink.put(to + l, y);
          }
        },
        in_, out_, at);
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
};

}  // namespace fastrobust::engine::FR_ISA
