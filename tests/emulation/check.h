// What the test program of the emulated kernels is written with: random data, guarded arrays, expectations.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "common/element.h"
#include "cuda_emulation.h"
#include "fastrobust/types.h"

namespace check {

using fastrobust::BFloat16;
using fastrobust::DType;
using fastrobust::Half;
using fastrobust::Status;

inline int& failures() {
  static int n = 0;
  return n;
}

#define EXPECT(condition, ...)                                             \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\n");                                          \
      if (++check::failures() >= 5) std::exit(1);                          \
    }                                                                      \
  } while (0)

template <class T>
constexpr DType dtype() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, BFloat16>) return DType::bf16;
  return DType::f16;
}

template <class T>
T number(double v) {
  if constexpr (std::is_same_v<T, double>)
    return v;
  else
    return fastrobust::store<T>(static_cast<float>(v));
}

inline std::mt19937_64& generator() {
  static std::mt19937_64 g;
  return g;
}
inline double uniform(double lo, double hi) { return std::uniform_real_distribution<double>(lo, hi)(generator()); }

// n numbers, `offset` of them past a 16-byte boundary, between guards that show whether something was written there.
// AddressSanitizer sees reads as well; for it the memory ends with the array.
template <class T>
class Array {
 public:
  explicit Array(int64_t n, int offset = 0) : n_(n), front_(kGuard + offset), all_(front_ + n + kBack) {
    std::memset(static_cast<void*>(all_.data()), kFill, all_.size() * sizeof(T));
  }
  template <class F>
  Array(int64_t n, int offset, const F& f) : Array(n, offset) {
    for (int64_t i = 0; i < n; ++i) data()[i] = f(i);
  }

  T* data() { return all_.data() + front_; }
  const T* data() const { return all_.data() + front_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return n_; }

  bool intact() const { return filled(0, front_) && filled(front_ + n_, all_.size()); }
  bool same(const Array& other) const { return n_ == other.n_ && !std::memcmp(data(), other.data(), n_ * sizeof(T)); }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kFill = 0xa5;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kBack = 0;
#else
  static constexpr size_t kBack = kGuard;
#endif

  bool filled(size_t from, size_t to) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(all_.data());
    for (size_t i = from * sizeof(T); i < to * sizeof(T); ++i) {
      if (bytes[i] != kFill) return false;
    }
    return true;
  }

  int64_t n_;
  size_t front_;
  std::vector<T> all_;
};

// The launch went to `stream`, and only there.
inline void expect_launches(const std::vector<void*>& streams) {
  EXPECT(emulation::launches() == streams, "%zu launches", emulation::launches().size());
  emulation::launches().clear();
}
inline void* stream() { return reinterpret_cast<void*>(0x5eed); }

// In each order of execution; the ThreadSanitizer build has its own.
template <class F>
void in_every_order(const F& f, bool every = true) {
#ifdef EMULATION_THREADS
  every = false;
#endif
  for (emulation::Order order : {emulation::Order::forward, emulation::Order::reverse, emulation::Order::shuffled}) {
    emulation::options().order = order;
    f();
    if (!every) break;
  }
  emulation::options().order = emulation::Order::forward;
}

// The program is small under ThreadSanitizer, whose threads are slow.
#ifdef EMULATION_THREADS
constexpr bool kSmall = true;
#else
constexpr bool kSmall = false;
#endif

}  // namespace check
