// Samples as dense rows, and as a block has them.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

// Where the elements of a sample lie in a block, in the order channel, row, column.
inline void fill_places(const Layout& layout, const Shape& shape, Array<int64_t>* list) {
  for (int64_t c = 0; c < shape.c; ++c) {
    for (int64_t h = 0; h < shape.h; ++h) {
      for (int64_t w = 0; w < shape.w; ++w) list->push(layout.element(c, h, w));
    }
  }
}

// `lanes`: of the block; 1 where they are channels. Rows and lanes meet in squares: rows may lie a multiple of 4096
// bytes apart, whose cache lines get in each other's way. Lanes beyond `count` repeat the first sample.
inline void to_lanes(const Array<int64_t>& places, const float* rows, int64_t count, int64_t lanes, float* out) {
  const int64_t size = places.size();
  for (int64_t i = 0; i < size && lanes == 1; ++i) out[places[i]] = rows[i];
  for (int64_t first = 0; first + kLanes <= lanes; first += kLanes) {
    for (int64_t begin = 0; begin < size; begin += kLanes) {
      const int64_t n = least(kLanes, size - begin);
      float square[kLanes][kLanes];
      for (int64_t l = 0; l < kLanes; ++l) {
        const int64_t sample = first + l < count ? first + l : 0;
        memcpy(square[l], rows + sample * size + begin, static_cast<size_t>(n) * sizeof(float));
      }
      for (int64_t i = 0; i < n; ++i) {
        float* to = out + places[begin + i] + first;
        for (int64_t l = 0; l < kLanes; ++l) to[l] = square[l][i];
      }
    }
  }
}

inline void to_rows(const Array<int64_t>& places, const float* in, int64_t count, int64_t lanes, float* rows) {
  const int64_t size = places.size();
  for (int64_t i = 0; i < size && lanes == 1; ++i) rows[i] = in[places[i]];
  for (int64_t first = 0; first < count && lanes > 1; first += kLanes) {
    for (int64_t begin = 0; begin < size; begin += kLanes) {
      const int64_t n = least(kLanes, size - begin);
      float square[kLanes][kLanes];
      for (int64_t i = 0; i < n; ++i) {
        const float* from = in + places[begin + i] + first;
        for (int64_t l = 0; l < kLanes; ++l) square[l][i] = from[l];
      }
      for (int64_t l = 0; l < least(kLanes, count - first); ++l)
        memcpy(rows + (first + l) * size + begin, square[l], static_cast<size_t>(n) * sizeof(float));
    }
  }
}

}  // namespace fastrobust::engine::FR_ISA
