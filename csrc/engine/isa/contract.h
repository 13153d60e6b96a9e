// Linear layers and convolutions: sums over taps and channels, a tile of outputs and pixels held in registers.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

// out(o, p) = sum over taps t and channels c of weight(t, c, o) * in(offset[t] + c * channel + p * pixel), for a tile
// of O outputs and P pixels. Weights lie in the order (t, c, o).
template <int O, int P>
inline __attribute__((always_inline)) void contract_tile(const float* in, const int64_t* offsets, int64_t taps,
                                                         int64_t channels, int64_t channel, int64_t pixel,
                                                         const float* weight, Vec (&acc)[O][P * kVectors]) {
  for (int64_t t = 0; t < taps; ++t) {
    const float* from = in + offsets[t];
    for (int64_t c = 0; c < channels; ++c, from += channel, weight += O) {
      Vec v[P * kVectors];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int k = 0; k < kVectors; ++k) v[p * kVectors + k] = read(from + p * pixel + k * kVector);
      }
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
#pragma GCC unroll 8
        for (int k = 0; k < P * kVectors; ++k) acc[o][k] += v[k] * weight[o];
      }
    }
  }
}

// One of the sums that make up a convolution or its gradient: all pixels with one remainder modulo the stride.
struct Phase {
  struct Tap {
    int64_t h, w, offset;  // kernel row and column, and the place in the input relative to the pixel's
  };
  Array<Tap> taps;
  Array<int64_t> offsets;  // of the taps
  int64_t in_at, out_at;   // pixel (0, 0)
  int64_t rows, columns;   // pixels
  int64_t in_row, in_column, out_row, out_column;
  Array<float> weights;  // group by group, tile by tile: (tap, channel, output)

  void push(const Tap& tap) {
    taps.push(tap);
    offsets.push(tap.offset);
  }
};

// What is done to a tile before it is stored.
struct Finish {
  const float* bias;  // by output, or null
  bool relu;
  const float* value;  // for a gradient: the value it belongs to
  Route route;
};

class Contraction {
 public:
  // groups x `outputs` from groups x `channels`.
  Contraction(int64_t groups, int64_t outputs, int64_t channels, const Layout& in, const Layout& out, int64_t phases)
      : groups_(groups),
        outputs_(outputs),
        channels_(channels),
        in_(in),
        out_(out),
        count_(phases),
        phases_(new Phase[phases]) {
    const int64_t tiles = (outputs + kOutputs - 1) / kOutputs;
    for (int64_t i = 0; i <= tiles; ++i) tiles_.push(i * outputs / tiles);  // of nearly equal width
  }
  ~Contraction() { delete[] phases_; }
  Contraction(const Contraction&) = delete;
  Contraction& operator=(const Contraction&) = delete;

  Phase& phase(int64_t i) { return phases_[i]; }

  // weight(group, tap, channel, output)
  template <class W>
  void pack(const W& weight) {
    for (int64_t p = 0; p < count_; ++p) {
      Phase& phase = phases_[p];
      phase.weights.resize(groups_ * phase.taps.size() * channels_ * outputs_);
      float* to = phase.weights.data();
      for (int64_t g = 0; g < groups_; ++g) {
        for (int64_t i = 0; i + 1 < tiles_.size(); ++i) {
          for (int64_t t = 0; t < phase.taps.size(); ++t) {
            for (int64_t c = 0; c < channels_; ++c) {
              for (int64_t o = tiles_[i]; o < tiles_[i + 1]; ++o) *to++ = weight(g, phase.taps[t], c, o);
            }
          }
        }
      }
    }
  }

  void run(const float* in, float* out, const Finish& finish) const {
    for (int64_t p = 0; p < count_; ++p) {
      const Phase& phase = phases_[p];
      for (int64_t row = 0; row < phase.rows; ++row) {
        const float* weights = phase.weights.data();
        for (int64_t g = 0; g < groups_; ++g) {
          const float* from = in + phase.in_at + row * phase.in_row + g * channels_ * in_.channel();
          for (int64_t i = 0; i + 1 < tiles_.size(); ++i) {
            const int64_t first = tiles_[i], width = tiles_[i + 1] - first, o = g * outputs_ + first;
            const int64_t at = phase.out_at + row * phase.out_row + o * out_.channel();
            tile_row<kOutputs>(width, phase, from, weights, out, at, o, finish);
            weights += phase.taps.size() * channels_ * width;
          }
        }
      }
    }
  }

 private:
  template <int O>
  void tile_row(int64_t width, const Phase& p, const float* in, const float* weights, float* out, int64_t at, int64_t o,
                const Finish& finish) const {
    if constexpr (O > 1) {
      if (width < O) return tile_row<O - 1>(width, p, in, weights, out, at, o, finish);
    }
    constexpr int kPixels = O * kVectors < kRegisters ? kRegisters / (O * kVectors) : 1;
    int64_t column = 0;
    for (; column + kPixels <= p.columns; column += kPixels)
      pixels<O, kPixels>(p, in, weights, out, at, o, column, finish);
    for (; column < p.columns; ++column) pixels<O, 1>(p, in, weights, out, at, o, column, finish);
  }

  template <int O, int P>
  void pixels(const Phase& p, const float* in, const float* weights, float* out, int64_t at, int64_t o, int64_t column,
              const Finish& finish) const {
    Vec acc[O][P * kVectors];
    at += column * p.out_column;
#pragma GCC unroll 8
    for (int i = 0; i < O; ++i) {
      const float bias = finish.bias ? finish.bias[o + i] : 0.0f;
#pragma GCC unroll 8
      for (int k = 0; k < P * kVectors; ++k) acc[i][k] = Vec{} + bias;
    }
    contract_tile<O, P>(in + column * p.in_column, p.offsets.data(), p.offsets.size(), channels_, in_.channel(),
                        p.in_column, weights, acc);
#pragma GCC unroll 8
    for (int i = 0; i < O; ++i) {
#pragma GCC unroll 8
      for (int k = 0; k < P * kVectors; ++k) {
        const int64_t to = at + i * out_.channel() + k / kVectors * p.out_column + k % kVectors * kVector;
        Vec v = acc[i][k];
        if (finish.relu) v = relu(v);
        if (finish.value)
          settle(finish.route, out, finish.value, to, v);
        else
          store(out + to, v);
      }
    }
  }

  int64_t groups_, outputs_, channels_;
  Layout in_, out_;
  int64_t count_;
  Phase* phases_;
  Array<int64_t> tiles_;
};

// A convolution (a linear layer is one of 1 x 1 on 1 x 1).
class Contract : public Layer {
 public:
  Contract(const Op& op, int to, const Layout* at, const Route& route) : Contract(op, to, at[op.in], at[to], route) {}

  // How wide the borders of the input and of the result must be.
  static void widen(const Op& op, Layout* in, Layout* out) {
    in->border_h = most(in->border_h, op.pad_h);
    in->border_w = most(in->border_w, op.pad_w);
    const Shape &i = in->shape, &o = out->shape;
    out->border_h = most(out->border_h, reach(i.h, o.h, op.kh, op.stride_h, op.pad_h, op.dilation_h));
    out->border_w = most(out->border_w, reach(i.w, o.w, op.kw, op.stride_w, op.pad_w, op.dilation_w));
  }

  void load(const float* const* tensors) override {
    const float* w = tensors[op_.weight];
    const auto at = [&](int64_t o, int64_t c, const Phase::Tap& tap) {
      return w[((o * group_in_ + c) * op_.kh + tap.h) * op_.kw + tap.w];
    };
    forward_.pack([&](int64_t g, const auto& tap, int64_t c, int64_t o) { return at(g * group_out_ + o, c, tap); });
    backward_.pack([&](int64_t g, const auto& tap, int64_t o, int64_t c) { return at(g * group_out_ + o, c, tap); });
    bias_.resize(group_out_ * op_.groups);
    for (int64_t o = 0; o < bias_.size(); ++o) bias_[o] = op_.bias >= 0 ? tensors[op_.bias][o] : 0.0f;
  }

  void forward(const Block& b) const override {
    forward_.run(b.value[op_.in], b.value[to_], {bias_.data(), op_.relu, nullptr, {}});
  }

  void backward(const Block& b) const override {
    backward_.run(b.gradient[to_], b.gradient[op_.in], {nullptr, false, b.value[op_.in], route_});
  }

 private:
  Contract(const Op& op, int to, const Layout& in, const Layout& out, const Route& route)
      : op_(op),
        to_(to),
        route_(route),
        group_in_(in.shape.c / op.groups),
        group_out_(out.shape.c / op.groups),
        forward_(op.groups, group_out_, group_in_, in, out, 1),
        backward_(op.groups, group_in_, group_out_, out, in,
                  least(op.stride_h, in.shape.h) * least(op.stride_w, in.shape.w)) {
    Phase& all = forward_.phase(0);
    for (int64_t y = 0; y < op.kh; ++y) {
      for (int64_t x = 0; x < op.kw; ++x)
        all.push({y, x, y * op.dilation_h * in.row() + x * op.dilation_w * in.column()});
    }
    all.in_at = in.at(0, -op.pad_h, -op.pad_w);
    all.out_at = out.at(0, 0, 0);
    all.rows = out.shape.h;
    all.columns = out.shape.w;
    all.in_row = op.stride_h * in.row();
    all.in_column = op.stride_w * in.column();
    all.out_row = out.row();
    all.out_column = out.column();

    int64_t number = 0;
    for (int64_t py = 0; py < least(op.stride_h, in.shape.h); ++py) {
      for (int64_t px = 0; px < least(op.stride_w, in.shape.w); ++px) {
        Phase& phase = backward_.phase(number++);
        for (int64_t y = 0; y < op.kh; ++y) {
          for (int64_t x = 0; x < op.kw; ++x) {
            const int64_t dy = py + op.pad_h - y * op.dilation_h, dx = px + op.pad_w - x * op.dilation_w;
            if (dy % op.stride_h == 0 && dx % op.stride_w == 0)
              phase.push({y, x, dy / op.stride_h * out.row() + dx / op.stride_w * out.column()});
          }
        }
        phase.in_at = out.at(0, 0, 0);
        phase.out_at = in.at(0, py, px);
        phase.rows = (in.shape.h - py + op.stride_h - 1) / op.stride_h;
        phase.columns = (in.shape.w - px + op.stride_w - 1) / op.stride_w;
        phase.in_row = out.row();
        phase.in_column = out.column();
        phase.out_row = op.stride_h * in.row();
        phase.out_column = op.stride_w * in.column();
      }
    }
  }

  // By how much the gradient's taps go beyond the result's pixels, on either side.
  static int64_t reach(int64_t in, int64_t out, int64_t k, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t before = ((k - 1) * dilation - pad + stride - 1) / stride,
                  after = (in - 1 + pad) / stride - (out - 1);
    return most(0, most(before, after));
  }

  const Op& op_;
  int to_;
  Route route_;
  int64_t group_in_, group_out_;
  Contraction forward_, backward_;
  Array<float> bias_;
};

}  // namespace fastrobust::engine::FR_ISA
