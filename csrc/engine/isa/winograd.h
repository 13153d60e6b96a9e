// Convolutions of 3 x 3 with fewer multiplications: a tile of outputs as a bilinear form of transformed inputs and
// transformed weights (Winograd, 1980; Lavin and Gray, CVPR 2016). With 2 x 2 outputs a tile the transforms only add
// and subtract, and the results stay as near to exact ones as sums in order are.
#pragma once
#include "contract.h"

namespace fastrobust::engine::FR_ISA {

// The algorithms in one dimension: kOut outputs from kIn inputs by kProducts products. Tiles lie kInStep inputs and
// kOut outputs apart. The matrix kKernel turns the three weights into factors.

// y[i] = g[0] d[i] + g[1] d[i + 1] + g[2] d[i + 2]
struct Dense {
  static constexpr int kIn = 4, kInStep = 2, kProducts = 4, kOut = 2;
  static constexpr double kKernel[kProducts][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  static FR_INLINE void input(const Vec* d, Vec* p) {
    p[0] = d[0] - d[2];
    p[1] = d[1] + d[2];
    p[2] = d[2] - d[1];
    p[3] = d[1] - d[3];
  }
  static FR_INLINE void output(const Vec* m, Vec* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// y[i] = g[0] d[2 i] + g[1] d[2 i + 1] + g[2] d[2 i + 2]
struct Strided {
  static constexpr int kIn = 5, kInStep = 4, kProducts = 5, kOut = 2;
  static constexpr double kKernel[kProducts][3] = {{1, 0, 0}, {1, 0, 1}, {0, 0, 1}, {0, 1, 0}, {0, 1, 0}};
  static FR_INLINE void input(const Vec* d, Vec* p) {
    p[0] = d[0] - d[2];
    p[1] = d[2];
    p[2] = d[2] - d[4];
    p[3] = d[1];
    p[4] = d[3];
  }
  static FR_INLINE void output(const Vec* m, Vec* y) {
    y[0] = m[0] + m[1] + m[3];
    y[1] = m[1] - m[2] + m[4];
  }
};

// Its transpose: y[2 i] = g[1] d[i], y[2 i + 1] = g[0] d[i + 1] + g[2] d[i]
struct Transposed {
  static constexpr int kIn = 3, kInStep = 2, kProducts = 5, kOut = 4;
  static constexpr double kKernel[kProducts][3] = {{0, 0, 1}, {1, 0, 1}, {1, 0, 0}, {0, 1, 0}, {0, 1, 0}};
  static FR_INLINE void input(const Vec* d, Vec* p) {
    p[0] = d[0] - d[1];
    p[1] = d[1];
    p[2] = d[1] - d[2];
    p[3] = d[0];
    p[4] = d[1];
  }
  static FR_INLINE void output(const Vec* m, Vec* y) {
    y[0] = m[3];
    y[1] = m[0] + m[1];
    y[2] = m[4];
    y[3] = m[1] - m[2];
  }
};

template <class A, class Lanes>
class Winograd : public Sums {
 public:
  // The first tile begins `pad` rows and columns before the input. `turned`: the kernel, by half a turn.
  Winograd(const Strides& strides, bool turned, const Layout& in, const Layout& out, int64_t pad_h, int64_t pad_w)
      : strides_(strides),
        turned_(turned),
        in_(in),
        out_(out),
        first_(in.at(0, -pad_h, -pad_w)),
        down_(tiles(out.shape.h)),
        across_(tiles(out.shape.w)) {
    const int64_t room = kScratch / (kFactors * kLanes * (channels() + outputs()));
    together_ = least(most(room, 4), down_ * across_);
    const int64_t count = (outputs() + kOutputs - 1) / kOutputs;
    for (int64_t i = 0; i <= count; ++i) split_.push(i * outputs() / count);
  }

  // How wide a border the tiles want around the input.
  static int64_t reach(int64_t in, int64_t out, int64_t pad) {
    return most(pad, (tiles(out) - 1) * A::kInStep - pad + A::kIn - in);
  }

  int64_t scratch() const override { return kFactors * (wide(channels()) + wide(outputs())); }

  void load(const float* weight) override {
    factors_.resize(kFactors * in_.channels * outputs() * Lanes::kWide);
    float* to = factors_.data();
    for (int f = 0; f < kFactors; ++f) {
      const double *by_row = A::kKernel[f / A::kProducts], *by_column = A::kKernel[f % A::kProducts];
      for (int64_t i = 0; i + 1 < split_.size(); ++i) {
        for (int64_t c = 0; c < in_.channels; ++c) {
          for (int64_t o = split_[i] * Lanes::kWide; o < split_[i + 1] * Lanes::kWide; ++o) {
            const float* g = weight + o * strides_.output + c * strides_.channel;
            double sum = 0;
            for (int k = 0; k < 9 && o < out_.channels; ++k)
              sum += by_row[k / 3] * by_column[k % 3] * double(g[turned_ ? 8 - k : k]);
            *to++ = static_cast<float>(sum);
          }
        }
      }
    }
  }

  void run(const float* in, const float* bias, const Sink& out, float* scratch) const override {
    float* products = scratch + kFactors * wide(channels());
    for (int64_t tile = 0; tile < down_ * across_; tile += together_) {
      const int64_t count = least(together_, down_ * across_ - tile);
      for (int64_t t = 0; t < count; ++t) transform(in, tile + t, scratch + t * channels() * kLanes);
      const float* factors = factors_.data();
      for (int f = 0; f < kFactors; ++f) {
        const float* from = scratch + f * wide(channels());
        for (int64_t i = 0; i + 1 < split_.size(); ++i) {
          const int64_t width = split_[i + 1] - split_[i];
          multiply<kOutputs>(width, from, factors, products + f * wide(outputs()) + split_[i] * kLanes, count);
          factors += in_.channels * width * Lanes::kWide;
        }
      }
      for (int64_t t = 0; t < count; ++t) gather(products + t * outputs() * kLanes, bias, out, tile + t);
    }
  }

 private:
  static constexpr int kFactors = A::kProducts * A::kProducts;
  static constexpr int64_t kScratch = 48 * 1024;  // floats that a second-level cache holds beside the weights

  static int64_t tiles(int64_t out) { return (out + A::kOut - 1) / A::kOut; }
  int64_t channels() const { return in_.shape.c; }  // rows of lanes
  int64_t outputs() const { return out_.shape.c; }
  // Floats of a factor for all tiles; a multiple of 4096 bytes would let all factors meet in one cache set.
  int64_t wide(int64_t n) const { return (together_ * n + 1) * kLanes; }

  // The inputs of a tile, transformed; channel by channel, a factor wide(channels) apart.
  void transform(const float* in, int64_t tile, float* to) const {
    const float* from = in + first_ + (tile / across_ * in_.row() + tile % across_ * in_.column()) * A::kInStep;
    const int64_t apart = wide(channels());
    for (int64_t c = 0; c < channels(); ++c, from += in_.channel(), to += kLanes) {
      for (int k = 0; k < kLanes; k += kVector) {
        Vec half[A::kProducts][A::kIn];
#pragma GCC unroll 5
        for (int x = 0; x < A::kIn; ++x) {
          Vec d[A::kIn], p[A::kProducts];
#pragma GCC unroll 5
          for (int y = 0; y < A::kIn; ++y) d[y] = read(from + y * in_.row() + x * kLanes + k);
          A::input(d, p);
#pragma GCC unroll 5
          for (int y = 0; y < A::kProducts; ++y) half[y][x] = p[y];
        }
#pragma GCC unroll 5
        for (int y = 0; y < A::kProducts; ++y) {
          Vec p[A::kProducts];
          A::input(half[y], p);
#pragma GCC unroll 5
          for (int x = 0; x < A::kProducts; ++x) store(to + (y * A::kProducts + x) * apart + k, p[x]);
        }
      }
    }
  }

  // The products of one factor, for O outputs and all tiles.
  template <int O>
  void multiply(int64_t width, const float* from, const float* factors, float* to, int64_t count) const {
    if constexpr (O > 1) {
      if (width < O) return multiply<O - 1>(width, from, factors, to, count);
    }
    constexpr int kTiles = O * kVectors < kRegisters ? kRegisters / (O * kVectors) : 1;
    const int64_t whole = count / kTiles * kTiles;
    multiply_tiles<O, kTiles>(from, factors, to, 0, whole);
    if constexpr (kTiles > 1) multiply_tiles<O, 1>(from, factors, to, whole, count);
  }

  template <int O, int P>
  void multiply_tiles(const float* from, const float* factors, float* to, int64_t first, int64_t end) const {
    static constexpr int64_t kOffset[1] = {0};
    const int64_t step = channels() * kLanes, out_step = outputs() * kLanes;
    from += first * step;
    to += first * out_step;
    for (int64_t t = first; t < end; t += P, from += P * step) {
      Vec acc[O][P * kVectors] = {};
      Lanes::template contract<O, P>(from, kOffset, 1, 0, in_.channels, kLanes, step, factors, acc);
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p, to += out_step) {
#pragma GCC unroll 32
        for (int o = 0; o < O; ++o) {
#pragma GCC unroll 32
          for (int k = 0; k < kVectors; ++k) store(to + o * kLanes + k * kVector, acc[o][p * kVectors + k]);
        }
      }
    }
  }

  // The outputs of a tile from its products.
  void gather(const float* from, const float* bias, const Sink& out, int64_t tile) const {
    const int64_t row = tile / across_ * A::kOut, column = tile % across_ * A::kOut;
    const int64_t rows = out_.shape.h - row, columns = out_.shape.w - column, at = out_.at(0, row, column);
    const Sink sink = out;  // in registers: stores might change what lies in memory
    sink.each_kind([&](auto kind) __attribute__((always_inline)) {
      if (rows >= A::kOut && columns >= A::kOut)
        gather_part(from, bias, sink, at, A::kOut, A::kOut, kind);
      else
        gather_part(from, bias, sink, at, least(rows, A::kOut), least(columns, A::kOut), kind);
    });
  }

  template <class Kind>
  FR_INLINE void gather_part(const float* from, const float* bias, const Sink& out, int64_t at, int64_t rows,
                             int64_t columns, Kind kind) const {
    const int64_t apart = wide(outputs()), out_row = out_.row(), out_channel = out_.channel();
    for (int64_t o = 0; o < outputs(); ++o, from += kLanes, at += out_channel) {
      for (int k = 0; k < kLanes; k += kVector) {
        const Vec start = bias ? Lanes::start(bias, o, k / kVector) : Vec{};
        Vec half[A::kOut][A::kProducts];
#pragma GCC unroll 5
        for (int x = 0; x < A::kProducts; ++x) {
          Vec m[A::kProducts], y[A::kOut];
#pragma GCC unroll 5
          for (int i = 0; i < A::kProducts; ++i) m[i] = read(from + (i * A::kProducts + x) * apart + k);
          A::output(m, y);
#pragma GCC unroll 5
          for (int i = 0; i < A::kOut; ++i) half[i][x] = y[i];
        }
#pragma GCC unroll 5
        for (int y = 0; y < rows; ++y) {
          Vec v[A::kOut];
          A::output(half[y], v);
#pragma GCC unroll 5
          for (int x = 0; x < columns; ++x) kind.put(out, at + y * out_row + x * kLanes + k, v[x] + start);
        }
      }
    }
  }

  Strides strides_;
  bool turned_;
  Layout in_, out_;
  int64_t first_, down_, across_;  // tiles
  int64_t together_;               // tiles transformed at a time
  Array<int64_t> split_;           // of the outputs
  Array<float> factors_;           // factor by factor, split by split: (channel, output)
};

}  // namespace fastrobust::engine::FR_ISA
