// The sums of linear layers and convolutions over taps and channels, a tile of outputs and pixels held in registers.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

// acc(o, p) += weight(t, c, o) * in(offset[t] + c * channel + p * pixel) over taps t, channels begin <= c < end, for a
// tile of O outputs and P pixels. Weights lie in the order (t, c, o).
struct Samples {                       // lanes are samples
  static constexpr int64_t kWide = 1;  // outputs to an `o`

  static FR_INLINE Vec start(const float* bias, int64_t o, int) { return Vec{} + bias[o]; }

  template <int O, int P>
  static FR_INLINE void contract(const float* in, const int64_t* offsets, int64_t taps, int64_t begin, int64_t end,
                                 int64_t channel, int64_t pixel, const float* weight, Vec (&acc)[O][P * kVectors]) {
    for (int64_t t = 0; t < taps; ++t) {
      const float* from = in + offsets[t] + begin * channel;
      for (int64_t c = begin; c < end; ++c, from += channel, weight += O) {
        Vec v[P * kVectors];
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 32
          for (int k = 0; k < kVectors; ++k) v[p * kVectors + k] = read(from + p * pixel + k * kVector);
        }
#pragma GCC unroll 32
        for (int o = 0; o < O; ++o) {
#pragma GCC unroll 32
          for (int k = 0; k < P * kVectors; ++k) acc[o][k] += v[k] * weight[o];
        }
      }
    }
  }
};

// The same sums where lanes are channels: 16 outputs to an `o`, `channel` between groups of 16 of the input's.
struct Channels {
  static constexpr int64_t kWide = kLanes;

  static FR_INLINE Vec start(const float* bias, int64_t o, int k) {
    return read_anywhere(bias + o * kLanes + k * kVector);
  }

  template <int O, int P>
  static FR_INLINE void contract(const float* in, const int64_t* offsets, int64_t taps, int64_t begin, int64_t end,
                                 int64_t channel, int64_t pixel, const float* weight, Vec (&acc)[O][P * kVectors]) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = begin; c < end; ++c, weight += O * kLanes) {
        const float* from = in + offsets[t] + c / kLanes * channel + c % kLanes;
        Vec w[O * kVectors];
#pragma GCC unroll 32
        for (int k = 0; k < O * kVectors; ++k) w[k] = read_anywhere(weight + k * kVector);
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 32
          for (int k = 0; k < O * kVectors; ++k)
            acc[k / kVectors][p * kVectors + k % kVectors] += w[k] * from[p * pixel];
        }
      }
    }
  }
};

constexpr int64_t kWideKernel = 5;  // columns from which on those that meet only the border are left out

// Rows or columns of a kernel, and how far from the pixel's place they read: places[0], places[0] + apart, ...
struct Side {
  struct Span {
    int64_t begin, end;
  };
  Array<int64_t> kernel, places;

  void push(int64_t row, int64_t place) {
    kernel.push(row);
    places.push(place);
  }

  // Those with which some pixel from `low` to `high` reads one of `size` rows of the input; no fewer.
  Span within(int64_t low, int64_t high, int64_t size) const {
    const int64_t count = places.size(), apart = count > 1 ? places[1] - places[0] : 1;
    if (count == 0) return {0, 0};
    const int64_t first = apart > 0 ? -high - places[0] : low + places[0] - size + 1,
                  last = apart > 0 ? size - 1 - low - places[0] : high + places[0], step = apart > 0 ? apart : -apart;
    const int64_t begin = first > 0 ? least(count, (first + step - 1) / step) : 0;
    return {begin, last < 0 ? begin : most(begin, least(count, last / step + 1))};
  }
};

// One of the sums that make up a convolution or its gradient: all pixels with one remainder modulo the stride.
struct Phase {
  Side down, across;
  Array<int64_t> offsets;  // of the taps, (down, across): their places in the input relative to the pixel's
  int64_t in_at, out_at;   // pixel (0, 0)
  int64_t rows, columns;   // pixels
  int64_t step_h, step_w;  // rows and columns of the input from one pixel to the next
  int64_t out_row, out_column;
  Array<float> weights;  // group by group, tile by tile: (tap, channel, output)

  void place(const Layout& in) {
    for (int64_t h : down.places) {
      for (int64_t w : across.places) offsets.push(h * in.row() + w * in.column());
    }
  }
};

// The sums of a convolution or of its gradient, by whatever method.
class Sums {
 public:
  virtual ~Sums() = default;
  virtual void load(const float* weight) = 0;
  // Each output plus its bias (null for none) goes to `out`.
  virtual void run(const float* in, const float* bias, const Sink& out, float* scratch) const = 0;
  virtual int64_t scratch() const = 0;  // floats
};

// How far apart weights lie that belong to neighbouring groups, outputs and channels; rows and columns of the kernel
// are the last of it.
struct Strides {
  int64_t group, output, channel;
};

// Tap by tap. Pixels of a tile that reach beyond the input's columns read its border.
template <class Lanes>
class Direct : public Sums {
 public:
  // groups x `outputs` from groups x `channels`. One group where lanes are channels.
  Direct(int64_t groups, int64_t outputs, int64_t channels, const Strides& strides, int64_t kernel_columns,
         const Layout& in, const Layout& out, int64_t phases)
      : groups_(groups),
        outputs_(outputs),
        channels_(channels),
        strides_(strides),
        kernel_columns_(kernel_columns),
        in_(in),
        out_(out),
        count_(phases),
        phases_(new Phase[phases]) {
    const int64_t rows = (outputs + Lanes::kWide - 1) / Lanes::kWide, tiles = (rows + kOutputs - 1) / kOutputs;
    for (int64_t i = 0; i <= tiles; ++i) tiles_.push(i * rows / tiles);  // of nearly equal width
    const int64_t pixels = in.shape.h * in.shape.w, room = kSecondCache / (pixels * kLanes);
    const int64_t chunks = pixels > kMostTogether ? 1 : (channels + room - 1) / room;
    for (int64_t i = 0; i <= chunks; ++i) chunks_.push(i * channels / chunks);
  }
  ~Direct() override { delete[] phases_; }
  Direct(const Direct&) = delete;
  Direct& operator=(const Direct&) = delete;

  Phase& phase(int64_t i) { return phases_[i]; }

  int64_t scratch() const override { return 0; }

  void load(const float* weight) override {
    for (int64_t p = 0; p < count_; ++p) {
      Phase& phase = phases_[p];
      phase.weights.resize(groups_ * phase.offsets.size() * channels_ * tiles_[tiles_.size() - 1] * Lanes::kWide);
      float* to = phase.weights.data();
      for (int64_t g = 0; g < groups_; ++g) {
        for (int64_t k = 0; k + 1 < chunks_.size(); ++k) {
          for (int64_t i = 0; i + 1 < tiles_.size(); ++i) {
            for (int64_t h : phase.down.kernel) {
              for (int64_t w : phase.across.kernel) {
                for (int64_t c = chunks_[k]; c < chunks_[k + 1]; ++c) {
                  const float* from = weight + g * strides_.group + c * strides_.channel + h * kernel_columns_ + w;
                  for (int64_t o = tiles_[i] * Lanes::kWide; o < tiles_[i + 1] * Lanes::kWide; ++o)
                    *to++ = o < outputs_ ? from[o * strides_.output] : 0.0f;
                }
              }
            }
          }
        }
      }
    }
  }

  void run(const float* in, const float* bias, const Sink& out, float*) const override {
    Sink last = out;  // sums over chunks start from what stands there
    if (chunks_.size() > 2) last.add = false;
    int64_t rows = 0;
    for (int64_t p = 0; p < count_; ++p) rows = most(rows, phases_[p].rows);
    // All phases of a row before the next row, since they read the same inputs.
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t p = 0; p < count_; ++p) {
        if (row < phases_[p].rows) run_row(phases_[p], row, in, bias, out, last);
      }
    }
  }

 private:
  void run_row(const Phase& phase, int64_t row, const float* in, const float* bias, const Sink& out,
               const Sink& last) const {
    const float* weights = phase.weights.data();
    const Side::Span down = phase.down.within(row * phase.step_h, row * phase.step_h, in_.shape.h);
    for (int64_t g = 0; g < groups_; ++g) {
      for (int64_t k = 0; k + 1 < chunks_.size(); ++k) {
        const bool ends = k + 2 == chunks_.size();
        const float* from = in + phase.in_at + row * phase.step_h * in_.row() + g * channels_ * in_.channel();
        for (int64_t i = 0; i + 1 < tiles_.size(); ++i) {
          const int64_t width = tiles_[i + 1] - tiles_[i], o = g * outputs_ + tiles_[i];
          const Tile tile{from,
                          weights,
                          down,
                          chunks_[k],
                          chunks_[k + 1],
                          bias ? bias + o * Lanes::kWide : nullptr,
                          k > 0 || (out.add && !ends),
                          phase.out_at + row * phase.out_row + o * out_.channel()};
          tile_row<kOutputs>(width, phase, tile, ends ? last : Sink{out.to, nullptr, false, false, false});
          weights += phase.offsets.size() * (chunks_[k + 1] - chunks_[k]) * width * Lanes::kWide;
        }
      }
    }
  }

  struct Tile {
    const float *in, *weights;
    Side::Span down;     // rows of the kernel that meet the input
    int64_t begin, end;  // of this chunk of channels
    const float* bias;   // of the first output, or null
    bool resumes;        // the sums so far stand in the result
    int64_t at;          // the first output's first pixel
  };

  template <int O>
  void tile_row(int64_t width, const Phase& p, const Tile& tile, const Sink& out) const {
    if constexpr (O > 1) {
      if (width < O) return tile_row<O - 1>(width, p, tile, out);
    }
    constexpr int kPixels = O * kVectors < kRegisters ? kRegisters / (O * kVectors) : 1;
    // Parts of nearly equal width, the wider ones first.
    const int64_t parts = (p.columns + kPixels - 1) / kPixels, narrow = p.columns / parts, wide = p.columns % parts;
    some_pixels<O, kPixels>(narrow + 1, p, tile, 0, wide, out);
    some_pixels<O, kPixels>(narrow, p, tile, wide * (narrow + 1), parts - wide, out);
  }

  template <int O, int P>
  void some_pixels(int64_t width, const Phase& p, const Tile& tile, int64_t column, int64_t parts,
                   const Sink& out) const {
    if constexpr (P > 1) {
      if (width < P) return some_pixels<O, P - 1>(width, p, tile, column, parts, out);
    }
    if (parts > 0) pixels<O, P>(p, tile, column, parts, out);
  }

  // P pixels at a time, so many times, from a column on.
  template <int O, int P>
  void pixels(const Phase& phase, const Tile& tile, int64_t column, int64_t parts, const Sink& out) const {
    // In registers: stores might change what lies in memory.
    const Sink sink = out;
    const int64_t *offsets = phase.offsets.data(), over = phase.across.places.size();
    const int64_t begin = tile.begin, end = tile.end, to_tap = (end - begin) * O * Lanes::kWide;
    const int64_t in_channel = in_.channel(), in_step = phase.step_w * in_.column();
    const bool clips = over >= kWideKernel;
    const int64_t first = tile.down.begin * over, runs = clips ? tile.down.end - tile.down.begin : 1;  // of taps
    const int64_t channel = out_.channel(), step = phase.out_column;
    const float *from = tile.in + column * in_step, *weights = tile.weights, *bias = tile.bias;
    const bool resumes = tile.resumes;
    int64_t at = tile.at + column * step;
    for (; parts > 0; --parts, column += P, from += P * in_step, at += P * step) {
      Vec acc[O][P * kVectors];
#pragma GCC unroll 32
      for (int o = 0; o < O; ++o) {
        if (resumes) {
#pragma GCC unroll 32
          for (int k = 0; k < P * kVectors; ++k)
            acc[o][k] = read(sink.to + at + o * channel + k / kVectors * step + k % kVectors * kVector);
          continue;
        }
#pragma GCC unroll 32
        for (int k = 0; k < P * kVectors; ++k) acc[o][k] = bias ? Lanes::start(bias, o, k % kVectors) : Vec{};
      }
      Side::Span taps{0, (tile.down.end - tile.down.begin) * over};
      if (clips) taps = phase.across.within(column * phase.step_w, (column + P - 1) * phase.step_w, in_.shape.w);
      for (int64_t run = 0, tap = first + taps.begin; run < runs; ++run, tap += over)
        Lanes::template contract<O, P>(from, offsets + tap, taps.end - taps.begin, begin, end, in_channel, in_step,
                                       weights + tap * to_tap, acc);
      float* to = sink.to + at;
      const int64_t vector = static_cast<uint64_t>(at) / kVector;
      sink.each_kind([&](auto kind) __attribute__((always_inline)) {
#pragma GCC unroll 32
        for (int o = 0; o < O; ++o) {
#pragma GCC unroll 32
          for (int p = 0; p < P; ++p) {
            const int64_t place = o * channel + p * step;
            kind.put_pixel(sink, to + place, vector + place / kVector, acc[o] + p * kVectors);
          }
        }
      });
    }
  }

  static constexpr int64_t kSecondCache = 32 * 1024;  // floats of the input that stay near

  int64_t groups_, outputs_, channels_;
  Strides strides_;
  int64_t kernel_columns_;
  Layout in_, out_;
  int64_t count_;
  Phase* phases_;
  Array<int64_t> tiles_;   // of the outputs
  Array<int64_t> chunks_;  // of the channels, where there are few pixels
};

}  // namespace fastrobust::engine::FR_ISA
