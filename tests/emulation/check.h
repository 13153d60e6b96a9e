// What the test program of the emulated kernels is written with: random data, guarded arrays, comparisons.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/common/math.h"
#include "fastrobust/types.h"

namespace check {

using fastrobust::BFloat16;
using fastrobust::DType;
using fastrobust::Half;

inline int& failures() {
  static int n = 0;
  return n;
}

#define EXPECT(condition, ...)                                         \
  do {                                                                 \
    if (!(condition)) {                                                \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                               \
      std::fprintf(stderr, "\n");                                      \
      if (++check::failures() >= 10) std::exit(1);                     \
    }                                                                  \
  } while (0)

template <class T>
constexpr DType kind() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, BFloat16>) return DType::bf16;
  return DType::f16;
}

// Numbers with a known content on both sides, to see what is written beyond the ends. AddressSanitizer sees reads, too:
// without an `offset`, the memory ends with the array.
template <class T>
class Array {
 public:
  explicit Array(int64_t n, int offset = 0) : n_(n), before_(kGuard + offset), all_(before_ + n) {
    std::memset(static_cast<void*>(all_.data()), kFill, before_ * sizeof(T));
    end_.assign(kGuard, kFill);
  }
  template <class F>
  Array(int64_t n, int offset, const F& f) : Array(n, offset) {
    for (int64_t i = 0; i < n; ++i) data()[i] = f(i);
  }

  T* data() { return all_.data() + before_; }
  const T* data() const { return all_.data() + before_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return n_; }
  bool intact() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(all_.data());
    for (size_t i = 0; i < before_ * sizeof(T); ++i) {
      if (bytes[i] != kFill) return false;
    }
    return true;
  }
  bool same(const Array& other) const { return n_ == other.n_ && !std::memcmp(data(), other.data(), n_ * sizeof(T)); }

 private:
  static constexpr int kGuard = 64;
  static constexpr unsigned char kFill = 0xa5;
  int64_t n_;
  size_t before_;
  std::vector<T> all_;
  std::vector<unsigned char> end_;
};

}  // namespace check
