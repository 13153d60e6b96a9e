// A block of samples: 16 of them as the lanes of vectors, so that every layer is a loop over vectors. A block of one
// sample has 16 of its channels as lanes instead. Most layers need not know; sums are made in the same order.
//
// Nothing here or in the layers may be a template or an inline function of the standard library: it would be compiled
// for each instruction set under one name, and the linker would keep any one of them.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "engine/body.h"

namespace fastrobust::engine::FR_ISA {

// Tiles: at most kOutputs outputs, and as many pixels as make up kRegisters sums.
#if defined(__AVX512F__)
constexpr int kVector = 16, kOutputs = 8, kRegisters = 24;
#elif defined(__AVX__)
constexpr int kVector = 8, kOutputs = 6, kRegisters = 12;
#else
constexpr int kVector = 4, kOutputs = 3, kRegisters = 12;
#endif
constexpr int kVectors = kLanes / kVector;  // to a pixel
typedef float Vec __attribute__((vector_size(4 * kVector), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * kVector), may_alias));

#define FR_INLINE inline __attribute__((always_inline))

FR_INLINE Vec read(const float* p) { return *reinterpret_cast<const Vec*>(p); }
FR_INLINE Vec read_anywhere(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof(v));
  return v;
}
FR_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
FR_INLINE Vec where(Mask m, Vec yes, Vec no) { return m ? yes : no; }
// max(0, v); NaN stays NaN.
#if defined(__AVX512F__)
FR_INLINE Vec relu(Vec v) { return __builtin_ia32_maxps512_mask(Vec{}, v, Vec{}, 0xffff, 4); }
#elif defined(__AVX__)
FR_INLINE Vec relu(Vec v) { return __builtin_ia32_maxps256(Vec{}, v); }
#else
FR_INLINE Vec relu(Vec v) { return where(v < 0.0f, Vec{}, v); }
#endif

// Beyond what one operation may have rounded away. NaN and infinities claim nothing in the end.
FR_INLINE Vec magnitude(Vec v) { return where(v < 0.0f, -v, v); }
FR_INLINE Vec up(Vec v) { return v + (magnitude(v) * 0x1p-21f + 0x1p-126f); }
FR_INLINE Vec down(Vec v) { return v - (magnitude(v) * 0x1p-21f + 0x1p-126f); }

// A vector's signs: a bit a lane, set where it is positive.
#if defined(__AVX512F__)
typedef uint16_t Bits;
FR_INLINE Bits positive(Vec v) { return __builtin_ia32_cmpps512_mask(v, Vec{}, 30 /* >, quiet */, 0xffff, 4); }
#elif defined(__AVX__)
typedef uint8_t Bits;
FR_INLINE Bits positive(Vec v) {
  return static_cast<Bits>(__builtin_ia32_movmskps256(reinterpret_cast<Vec>(v > 0.0f)));
}
#else
typedef uint8_t Bits;
FR_INLINE Bits positive(Vec v) {
  const Mask m = v > 0.0f;
  return static_cast<Bits>((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}
#endif
FR_INLINE Mask spread(Bits bits) {
  Mask lane{};
#pragma GCC unroll 16
  for (int i = 0; i < kVector; ++i) lane[i] = 1 << i;
  return ((Mask{} + bits) & lane) != 0;
}
FR_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
FR_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Plain elements; memory that is gone ends the program, as operator new would in code without exceptions.
template <class T>
class Array {
 public:
  Array() = default;
  ~Array() { free(data_); }
  Array(Array&& other) : data_(other.data_), size_(other.size_), room_(other.room_) { other.data_ = nullptr; }
  Array& operator=(const Array&) = delete;
  void push(const T& v) {
    resize(size_ + 1);
    data_[size_ - 1] = v;
  }
  void resize(int64_t n) {
    if (n > room_) {
      room_ = most(n, 2 * room_);
      data_ = static_cast<T*>(realloc(static_cast<void*>(data_), static_cast<size_t>(room_) * sizeof(T)));
      if (!data_) abort();
    }
    size_ = n;
  }
  int64_t size() const { return size_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0, room_ = 0;
};

// A value of a block: [row][channel][column][lane], with a border of zeros that nobody writes, as wide as the layers
// around it want. Values and their gradients are laid out alike. Where lanes are channels, shape.c counts groups of 16
// of them; nobody reads the lanes beyond the last.
struct Layout {
  Shape shape{};
  int64_t channels = 0;  // of a sample
  int64_t border_h = 0, border_w = 0;

  bool same_shape(const Layout& l) const {
    return shape.c == l.shape.c && shape.h == l.shape.h && shape.w == l.shape.w;
  }
  bool operator==(const Layout& l) const { return same_shape(l) && border_h == l.border_h && border_w == l.border_w; }
  int64_t column() const { return kLanes; }
  int64_t channel() const { return (shape.w + 2 * border_w) * kLanes; }
  int64_t row() const { return shape.c * channel(); }
  int64_t size() const { return (shape.h + 2 * border_h) * row(); }
  int64_t at(int64_t c, int64_t h, int64_t w) const {
    return (h + border_h) * row() + c * channel() + (w + border_w) * column();
  }
  // Of an element of a sample, the first one where lanes are samples.
  int64_t element(int64_t c, int64_t h, int64_t w) const {
    return channels == shape.c ? at(c, h, w) : at(c / kLanes, h, w) + c % kLanes;
  }
  // Of element i in the order channel, row, column.
  int64_t element(int64_t i) const {
    const int64_t pixels = shape.h * shape.w;
    return element(i / pixels, i % pixels / shape.w, i % shape.w);
  }
};

template <int kStep, class F, class... Places>
FR_INLINE void along(int64_t c, int64_t n, const F& f, Places... at) {
  for (int64_t i = 0; i < n; i += kStep) f(c, (at + i)...);
}

// Calls f(channel, place in each layout) for each vector (or kStep elements) of values of one shape.
template <int kStep = kVector, class F, class... Layouts>
FR_INLINE void each_vector(const Shape& shape, const F& f, const Layouts&... layouts) {
  for (int64_t h = 0; h < shape.h; ++h) {
    for (int64_t c = 0; c < shape.c; ++c) along<kStep>(c, shape.w * kLanes, f, layouts.at(c, h, 0)...);
  }
}

// Where the gradient of an input goes: on top of what stands there (add); zero where the input, the result of a ReLU,
// is not positive (mask).
struct Route {
  bool add = false, mask = false;
};

// Where results go: those of a layer, or gradients.
struct Sink {
  float* to;
  Bits* mask;  // a vector's signs at place / kVector: written with `relu`, unless null; read with `masked`
  bool relu, add, masked;

  FR_INLINE void put(int64_t place, Vec v) const {
    each_kind([&](auto kind) __attribute__((always_inline)) { kind.put(*this, place, v); });
  }

  // Calls f with what is to be done as a type, so that it is decided once for many vectors: f's argument has
  // put(sink, place, v).
  template <class F>
  FR_INLINE void each_kind(const F& f) const {
    if (relu)
      mask ? f(Kind<false, true, true>{}) : f(Kind<false, false, true>{});
    else if (masked)
      add ? f(Kind<true, true, false>{}) : f(Kind<false, true, false>{});
    else
      add ? f(Kind<true, false, false>{}) : f(Kind<false, false, false>{});
  }

  template <bool kAdd, bool kMask, bool kRelu>
  struct Kind {
    FR_INLINE void put(const Sink& sink, int64_t place, Vec v) const {
      put_at(sink, sink.to + place, static_cast<uint64_t>(place) / kVector, v);
    }

    // `at`: the place / kVector.
    FR_INLINE void put_at(const Sink& sink, float* to, int64_t at, Vec v) const {
      if constexpr (kAdd) v += read(to);
      if constexpr (kRelu && kMask) sink.mask[at] = positive(v);
      if constexpr (kRelu) v = engine::FR_ISA::relu(v);
      if constexpr (kMask && !kRelu) v = where(spread(sink.mask[at]), v, Vec{});
      store(to, v);
    }

    // The vectors of a pixel. The signs of two are written at once.
    FR_INLINE void put_pixel(const Sink& sink, float* to, int64_t at, const Vec* v) const {
      if constexpr (kRelu && kMask && kVector == 8) {
        const uint16_t both = static_cast<uint16_t>(positive(v[0]) | positive(v[1]) << 8);
        memcpy(sink.mask + at, &both, sizeof(both));
        for (int k = 0; k < kVectors; ++k) store(to + k * kVector, engine::FR_ISA::relu(v[k]));
      } else {
#pragma GCC unroll 4
        for (int k = 0; k < kVectors; ++k) put_at(sink, to + k * kVector, at + k, v[k]);
      }
    }
  };
};

// The memory of one thread: values, gradients and the signs of values by number (masks null in a pass without
// gradients), and what a layer needs while it runs.
struct Block {
  float* const* value;
  float* const* gradient;
  Bits* const* mask;
  float* scratch;
  bool linear = false;                 // leave out ReLUs
  const Widening* widening = nullptr;  // of each op, for boxes

  FR_INLINE Sink result(const Op& op, int v) const {
    return {value[v], mask ? mask[v] : nullptr, op.relu && !linear, false, false};
  }
  FR_INLINE Sink slope(int v, const Route& route) const { return {gradient[v], mask[v], false, route.add, route.mask}; }
};

FR_INLINE void clear(const Layout& l, float* value) {
  each_vector(l.shape, [&](int64_t, int64_t i) { store(value + i, Vec{}); }, l);
}

// The finished gradient of a value that was collected without a mask.
FR_INLINE void apply_mask(const Layout& l, const Sink& sink) {
  each_vector(l.shape, [&](int64_t, int64_t i) { sink.put(i, read(sink.to + i)); }, l);
}

// An interval: centre and radius. Its ends, and what lies between ends, are rounded outwards.
struct Pair {
  Vec centre, radius;

  static FR_INLINE Pair between(Vec low, Vec high) {
    const Vec centre = (low + high) * 0.5f, above = high - centre, below = centre - low;
    return {centre, up(where(above > below, above, below))};
  }
  FR_INLINE Vec low() const { return down(centre - radius); }
  FR_INLINE Vec high() const { return up(centre + radius); }
};

// A widening as factors: of radii, of the magnitudes of centres; and of radii that were summed. They pay for their own
// rounding, too.
struct Factors {
  float radius, centre, sum;

  explicit Factors(const Widening& w)
      : radius((1 + w.net) * (1 + 0x1p-20f)), centre((w.own + w.net) * (1 + 0x1p-10f)), sum(1 + 2 * w.own) {}
  FR_INLINE Vec widened(Vec r, Vec c) const { return r * radius + (magnitude(c) * centre + 0x1p-126f); }
};

// Where intervals go.
struct PairSink {
  float *centre, *radius;
  bool relu;

  FR_INLINE void put(int64_t place, Pair p) const {
    if (relu) p = Pair::between(engine::FR_ISA::relu(p.low()), engine::FR_ISA::relu(p.high()));
    store(centre + place, p.centre);
    store(radius + place, p.radius);
  }
};

// A layer of the tape. backward() turns the gradient of its result, masked already by its own ReLU, into that of what
// it read. boxes() is forward() for intervals: their centres are the values, their radii stand where gradients do.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual void load(const float* const*) {}
  virtual void forward(const Block& b) const = 0;
  virtual void backward(const Block& b) const = 0;
  virtual bool has_boxes() const { return false; }
  virtual void boxes(const Block&) const {}
  virtual int64_t roundings() const { return 0; }  // that a sum of boxes passes through
  virtual int64_t scratch() const { return 0; }    // floats

 protected:
  static FR_INLINE PairSink boxes_of(const Block& b, const Op& op, int v) {
    return {b.value[v], b.gradient[v], op.relu};
  }
  static FR_INLINE Pair read_box(const Block& b, int v, int64_t place) {
    return {read(b.value[v] + place), read(b.gradient[v] + place)};
  }
  // That of the op whose result is value `to`.
  static FR_INLINE Widening widening(const Block& b, int to) { return b.widening ? b.widening[to - 1] : Widening{}; }

  // boxes() of a layer that only moves elements.
  void same_for_both(const Block& b, const Op& op, int to, const Layout& layout) const {
    forward({b.value, b.gradient, nullptr, b.scratch, true});
    forward({b.gradient, b.value, nullptr, b.scratch, true});
    if (!op.relu) return;
    const PairSink out = boxes_of(b, op, to);
    each_vector(layout.shape, [&](int64_t, int64_t i) { out.put(i, read_box(b, to, i)); }, layout);
  }
};

}  // namespace fastrobust::engine::FR_ISA
