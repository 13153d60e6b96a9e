// The directions of random starts, four elements at a time.
#pragma once
#include "fastrobust/types.h"
#include "philox.h"

namespace fastrobust {

struct Draw {
  uint64_t seed;
  uint32_t draw, sample;
  double eps;
  Stream stream = kStartElements;
};

struct Four {
  double v[4];
};

// Elements 4 * block .. of a direction: uniform in [-eps, eps] (Linf), standard normal (L2) or Laplace (L1).
template <Norm kNorm>
FR_HD Four direction_block(const Draw& key, int64_t block) {
  const Words word = philox(key.seed, static_cast<uint32_t>(block), key.draw, key.sample, key.stream);
  if constexpr (kNorm == Norm::linf) {
    const auto side = [&](uint32_t w) { return key.eps * (2.0 * uniform(w) - 1.0); };
    return {{side(word.w[0]), side(word.w[1]), side(word.w[2]), side(word.w[3])}};
  } else if constexpr (kNorm == Norm::l2) {
    const Two first = normal_pair(word.w[0], word.w[1]), second = normal_pair(word.w[2], word.w[3]);
    return {{first.a, first.b, second.a, second.b}};
  } else {
    return {{laplace(word.w[0]), laplace(word.w[1]), laplace(word.w[2]), laplace(word.w[3])}};
  }
}

}  // namespace fastrobust
