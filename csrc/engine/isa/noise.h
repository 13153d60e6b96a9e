// Standard normals for smoothing: Philox4x32-10 and Box and Muller's transform in float32, a vector of blocks at a
// time. The same numbers as common/philox.h makes in double, but for rounding: radial uniforms have 32 bits.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "block.h"
#include "common/philox.h"

namespace fastrobust::engine::FR_ISA {

typedef uint32_t Counts __attribute__((vector_size(4 * kVector), may_alias));

// The upper halves of the 64-bit products.
FR_INLINE Counts product_high(Counts a, uint32_t m) {
#if defined(__AVX512F__)
  const __m512i x = reinterpret_cast<__m512i>(a), f = _mm512_set1_epi32(static_cast<int>(m));
  const __m512i even = _mm512_maskz_srli_epi64(0xff, _mm512_maskz_mul_epu32(0xff, x, f), 32),
                odd = _mm512_maskz_mul_epu32(0xff, _mm512_maskz_srli_epi64(0xff, x, 32), f);
  return reinterpret_cast<Counts>(_mm512_mask_blend_epi32(0xaaaa, even, odd));
#elif defined(__AVX2__)
  const __m256i x = reinterpret_cast<__m256i>(a), f = _mm256_set1_epi32(static_cast<int>(m));
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, f), 32),
                odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), f);
  return reinterpret_cast<Counts>(_mm256_blend_epi32(even, odd, 0xaa));
#else
  Counts high;
  for (int l = 0; l < kVector; ++l) high[l] = static_cast<uint32_t>((static_cast<uint64_t>(a[l]) * m) >> 32);
  return high;
#endif
}

FR_INLINE Vec root(Vec v) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(v)));
#elif defined(__AVX__)
  return reinterpret_cast<Vec>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
  for (int l = 0; l < kVector; ++l) v[l] = __builtin_sqrtf(v[l]);
  return v;
#endif
}

FR_INLINE Vec whole(Mask m) { return __builtin_convertvector(m, Vec); }

// sqrt(-2 log u) for u = (w + 1/2) 2^-32: from the nearer end of (0, 1), so that both keep their relative precision.
FR_INLINE Vec radial(Counts w) {
  const Mask upper = reinterpret_cast<Mask>(w) < 0;
  const Mask near = upper ? ~reinterpret_cast<Mask>(w) : reinterpret_cast<Mask>(w);
  const Vec end = (whole(near) + 0.5f) * 0x1p-32f;  // u, or 1 - u
  // u = 2^e (1 + f) with 1 + f in about sqrt(1/2) .. sqrt(2).
  const Mask shifted = reinterpret_cast<Mask>(end) - 0x3f3504f3, e_low = shifted >> 23;
  const Vec f_low = reinterpret_cast<Vec>(reinterpret_cast<Mask>(end) - (e_low << 23)) - 1.0f;
  const Mask close = end < 0.29289323f;
  const Vec f = upper ? (close ? -end : 1.0f - 2.0f * end) : f_low;
  const Vec e = upper ? (close ? Vec{} : Vec{} - 1.0f) : whole(e_low);
  const Vec s = f / (2.0f + f), z = s * s;
  const Vec series = (((z * (1.0f / 9) + 1.0f / 7) * z + 1.0f / 5) * z + 1.0f / 3) * z;
  return root(-2.0f * (e * 0.69314718f + 2.0f * (s + s * series)));
}

// radius * cos and sin of 2 pi (w + 1/2) 2^-32, about the nearest quarter turn.
FR_INLINE void turn(Counts w, Vec radius, Vec* cosine, Vec* sine) {
  const Counts quarter = (w + 0x20000000u) >> 30;  // 0 .. 3; 4 is 0 by overflow
  const Vec t = (whole(reinterpret_cast<Mask>(w - (quarter << 30))) + 0.5f) * 1.4629180793e-9f, z = t * t;
  const Vec c = 1.0f + z * (-0.5f + z * (4.16666418e-2f + z * (-1.38873162e-3f + z * 2.44332072e-5f)));
  const Vec s = t + t * (z * (-1.66666546e-1f + z * (8.33216087e-3f + z * -1.95152959e-4f)));
  const Mask odd = reinterpret_cast<Mask>(quarter & 1u) != 0, flip_c = reinterpret_cast<Mask>((quarter + 1u) & 2u) != 0,
             flip_s = reinterpret_cast<Mask>(quarter & 2u) != 0;
  const Vec a = radius * (odd ? s : c), b = radius * (odd ? c : s);
  *cosine = flip_c ? -a : a;
  *sine = flip_s ? -b : b;
}

// Four standard normals a lane, those of elements 4 * block .. 4 * block + 3 of copy `sample` of image `index`.
FR_INLINE void four_normals(uint64_t seed, int64_t block, Counts sample, Counts index, Vec (&z)[4]) {
  Counts c0 = Counts{} + static_cast<uint32_t>(block), c1 = sample, c2 = index,
         c3 = Counts{} + static_cast<uint32_t>(kNoise);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Counts a = product_high(c0, 0xD2511F53u), a_low = c0 * 0xD2511F53u;
    const Counts b = product_high(c2, 0xCD9E8D57u), b_low = c2 * 0xCD9E8D57u;
    c0 = b ^ c1 ^ k0;
    c1 = b_low;
    c2 = a ^ c3 ^ k1;
    c3 = a_low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  turn(c1, radial(c0), &z[0], &z[1]);
  turn(c3, radial(c2), &z[2], &z[3]);
}

}  // namespace fastrobust::engine::FR_ISA
