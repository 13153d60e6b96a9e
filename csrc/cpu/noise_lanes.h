// A vector of draws at a time: the types of common/noise.h for one instruction set.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../common/noise.h"

namespace fastrobust::cpu::FR_ISA {

struct Lanes {
#if defined(__AVX512F__)
  static constexpr int kCount = 16;
#elif defined(__AVX2__)
  static constexpr int kCount = 8;
#else
  static constexpr int kCount = 4;
#endif
  typedef float Vec __attribute__((vector_size(4 * kCount)));
  typedef int32_t Mask __attribute__((vector_size(4 * kCount)));
  typedef uint32_t Words __attribute__((vector_size(4 * kCount)));

  FR_HD static Vec whole(Mask m) { return __builtin_convertvector(m, Vec); }

  FR_HD static Vec root(Vec v) {
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#elif defined(__AVX2__)
    return (Vec)_mm256_sqrt_ps((__m256)v);
#else
    for (int l = 0; l < kCount; ++l) v[l] = __builtin_sqrtf(v[l]);
    return v;
#endif
  }

  FR_HD static Words high(Words a, uint32_t m) {
#if defined(__AVX512F__)
    const __m512i x = (__m512i)a, f = _mm512_set1_epi32(static_cast<int>(m));
    const __m512i even = _mm512_maskz_srli_epi64(0xff, _mm512_maskz_mul_epu32(0xff, x, f), 32),
                  odd = _mm512_maskz_mul_epu32(0xff, _mm512_maskz_srli_epi64(0xff, x, 32), f);
    return (Words)_mm512_mask_blend_epi32(0xaaaa, even, odd);
#elif defined(__AVX2__)
    const __m256i x = (__m256i)a, f = _mm256_set1_epi32(static_cast<int>(m));
    const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, f), 32),
                  odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), f);
    return (Words)_mm256_blend_epi32(even, odd, 0xaa);
#else
    Words high;
    for (int l = 0; l < kCount; ++l) high[l] = static_cast<uint32_t>((static_cast<uint64_t>(a[l]) * m) >> 32);
    return high;
#endif
  }
};

}  // namespace fastrobust::cpu::FR_ISA
