// A block of samples: 16 of them as the lanes of vectors, so that every layer is a loop over vectors.
//
// Nothing here or in the layers may be a template or an inline function of the standard library: it would be compiled
// for each instruction set under one name, and the linker would keep any one of them.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "engine/body.h"

namespace fastrobust::engine::FR_ISA {

constexpr int kLanes = 16;
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
FR_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
FR_INLINE Vec where(Mask m, Vec yes, Vec no) { return m ? yes : no; }
FR_INLINE Vec relu(Vec v) { return where(v < 0.0f, Vec{}, v); }  // NaN stays NaN
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
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0, room_ = 0;
};

// A value of a block: [row][channel][column][lane], with a border of zeros that nobody writes, as wide as the layers
// around it want. Values and their gradients are laid out alike.
struct Layout {
  Shape shape{};
  int64_t border_h = 0, border_w = 0;

  int64_t column() const { return kLanes; }
  int64_t channel() const { return (shape.w + 2 * border_w) * kLanes; }
  int64_t row() const { return shape.c * channel(); }
  int64_t size() const { return (shape.h + 2 * border_h) * row(); }
  int64_t at(int64_t c, int64_t h, int64_t w) const {
    return (h + border_h) * row() + c * channel() + (w + border_w) * column();
  }
};

// Calls f(place) for each vector of a value, its border left out.
template <class F>
FR_INLINE void each_vector(const Layout& l, const F& f) {
  const int64_t n = l.shape.w * kLanes;
  for (int64_t h = 0; h < l.shape.h; ++h) {
    for (int64_t c = 0; c < l.shape.c; ++c) {
      const int64_t at = l.at(c, h, 0);
      for (int64_t i = 0; i < n; i += kVector) f(at + i);
    }
  }
}

// The memory of one thread: values and gradients by number.
struct Block {
  float* const* value;
  float* const* gradient;
};

// Where the gradient of an input goes: on top of what stands there (add); zero where the input, the result of a ReLU,
// is not positive (mask).
struct Route {
  bool add = false, mask = false;
};

// What stands at `place` after the gradient v of it came in.
FR_INLINE void settle(const Route& route, float* gradient, const float* value, int64_t place, Vec v) {
  if (route.add) v += read(gradient + place);
  if (route.mask) v = where(read(value + place) > 0.0f, v, Vec{});
  store(gradient + place, v);
}

// A layer of the tape. backward() turns the gradient of its result, masked already by its own ReLU, into that of what
// it read.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual void load(const float* const*) {}
  virtual void forward(const Block& b) const = 0;
  virtual void backward(const Block& b) const = 0;
};

}  // namespace fastrobust::engine::FR_ISA
