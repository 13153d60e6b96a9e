// The sums of linear layers and convolutions for boxes: centres times w, radii times |w|, each weight read once.
#pragma once
#include "contract.h"

namespace fastrobust::engine::FR_ISA {

// Sums are made of chains of about this many products, which are added up: long chains lose more to rounding.
constexpr int64_t kChain = 256;

class BoxSums {
 public:
  BoxSums(int64_t groups, int64_t outputs, int64_t channels, const Strides& strides, int64_t kernel_columns,
          const Layout& in, const Layout& out)
      : groups_(groups),
        outputs_(outputs),
        channels_(channels),
        strides_(strides),
        kernel_columns_(kernel_columns),
        in_(in),
        out_(out) {
    const int64_t tiles = (outputs + kTile - 1) / kTile;
    for (int64_t i = 0; i <= tiles; ++i) tiles_.push(i * outputs / tiles);
  }

  // To be filled in before load().
  Phase& phase() { return phase_; }

  // How many roundings a product passes through, at most: its own, those of its chain, those of the chains' sums.
  int64_t roundings() const {
    const int64_t parts = chunks(), widest = (channels_ + parts - 1) / parts;
    return 1 + phase_.offsets.size() * widest + parts;
  }

  void load(const float* weight) {
    phase_.weights.resize(groups_ * phase_.offsets.size() * channels_ * outputs_);
    float* to = phase_.weights.data();
    const int64_t parts = chunks();
    for (int64_t g = 0; g < groups_; ++g) {
      for (int64_t k = 0; k < parts; ++k) {
        for (int64_t i = 0; i + 1 < tiles_.size(); ++i) {
          for (int64_t h : phase_.down.kernel) {
            for (int64_t w : phase_.across.kernel) {
              for (int64_t c = k * channels_ / parts; c < (k + 1) * channels_ / parts; ++c) {
                const float* from = weight + g * strides_.group + c * strides_.channel + h * kernel_columns_ + w;
                for (int64_t o = tiles_[i]; o < tiles_[i + 1]; ++o) *to++ = from[o * strides_.output];
              }
            }
          }
        }
      }
    }
  }

  // `bias` and the widening's slack: of each output, or null.
  void run(const float* centre, const float* radius, const float* bias, const Widening& w, const PairSink& out) const {
    const int64_t parts = chunks();
    for (int64_t row = 0; row < phase_.rows; ++row) {
      const float* weights = phase_.weights.data();
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t from = phase_.in_at + row * phase_.step_h * in_.row() + g * channels_ * in_.channel();
        for (int64_t k = 0; k < parts; ++k) {
          const int64_t begin = k * channels_ / parts, count = (k + 1) * channels_ / parts - begin;
          for (int64_t i = 0; i + 1 < tiles_.size(); ++i) {
            const int64_t width = tiles_[i + 1] - tiles_[i], o = g * outputs_ + tiles_[i];
            const Part part{centre + from + begin * in_.channel(),
                            radius + from + begin * in_.channel(),
                            weights,
                            count,
                            phase_.out_at + row * phase_.out_row + o * out_.channel(),
                            bias ? bias + o : nullptr,
                            w.slack ? w.slack + o : nullptr,
                            1 + 2 * w.own,
                            k == 0,
                            k + 1 == parts};
            row_of<kTile>(width, part, out);
            weights += phase_.offsets.size() * count * width;
          }
        }
      }
    }
  }

 private:
  // Outputs, and pixels, whose centres and radii fill the registers.
  static constexpr int kTile = kVector == 16 ? 6 : kVector == 8 ? 3 : 1;
  static constexpr int kPixels = kVector == 16 ? 2 : 1;

  struct Part {
    const float *centre, *radius, *weights;
    int64_t channels, at;
    const float *bias, *slack;
    float factor;      // of the radii, for the rounding of their own sums
    bool first, last;  // of the chains
  };

  // Chains to a sum: each of all taps and some channels.
  int64_t chunks() const { return least(channels_, (phase_.offsets.size() * channels_ + kChain - 1) / kChain); }

  template <int O>
  void row_of(int64_t width, const Part& part, const PairSink& out) const {
    if constexpr (O > 1) {
      if (width < O) return row_of<O - 1>(width, part, out);
    }
    const int64_t whole = phase_.columns / kPixels * kPixels;
    for (int64_t x = 0; x < whole; x += kPixels) pixels<O, kPixels>(part, x, out);
    for (int64_t x = whole; x < phase_.columns; ++x) pixels<O, 1>(part, x, out);
  }

  template <int O, int P>
  void pixels(const Part& part, int64_t column, const PairSink& out) const {
    constexpr int V = P * kVectors;
    const int64_t step = phase_.step_w * in_.column(), out_step = phase_.out_column, channel = out_.channel();
    const int64_t taps = phase_.offsets.size(), at = part.at + column * out_step;
    const float* weight = part.weights;
    Vec c[O][V], r[O][V];
#pragma GCC unroll 32
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 32
      for (int k = 0; k < V; ++k) {
        c[o][k] = Vec{} + (part.first && part.bias ? part.bias[o] : 0.0f);
        r[o][k] = Vec{};
      }
    }
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t offset = phase_.offsets[t] + column * step;
      const float *x = part.centre + offset, *s = part.radius + offset;
      for (int64_t i = 0; i < part.channels; ++i, x += in_.channel(), s += in_.channel(), weight += O) {
        Vec xs[V], ss[V];
#pragma GCC unroll 32
        for (int k = 0; k < V; ++k) {
          xs[k] = read(x + k / kVectors * step + k % kVectors * kVector);
          ss[k] = read(s + k / kVectors * step + k % kVectors * kVector);
        }
#pragma GCC unroll 32
        for (int o = 0; o < O; ++o) {
          const float w = weight[o], size = __builtin_fabsf(w);
#pragma GCC unroll 32
          for (int k = 0; k < V; ++k) {
            c[o][k] += xs[k] * w;
            r[o][k] += ss[k] * size;
          }
        }
      }
    }
#pragma GCC unroll 32
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 32
      for (int k = 0; k < V; ++k) {
        const int64_t place = at + o * channel + k / kVectors * out_step + k % kVectors * kVector;
        Pair sum{c[o][k], r[o][k]};
        if (!part.first) sum = {read(out.centre + place) + sum.centre, read(out.radius + place) + sum.radius};
        if (!part.last) {
          store(out.centre + place, sum.centre);
          store(out.radius + place, sum.radius);
          continue;
        }
        if (part.slack) sum.radius = up(sum.radius * part.factor + part.slack[o]);  // null where nothing is widened
        out.put(place, sum);
      }
    }
  }

  int64_t groups_, outputs_, channels_;
  Strides strides_;
  int64_t kernel_columns_;
  Layout in_, out_;
  Phase phase_;
  Array<int64_t> tiles_;  // of the outputs
};

}  // namespace fastrobust::engine::FR_ISA
