// How a sum is rounded in a given direction: by its exact error, or, in code that runs with the processor rounding
// down, by itself.
#pragma once
#include "math.h"

namespace fastrobust {

// add: a + b towards -inf. towards: x plus size >= 0, or x minus size where `way` has a minus sign, rounded towards x,
// so that it is not farther from x than size.
struct ByError {
  template <class T>
  FR_HD static T add(T a, T b) {
    return add_down(a, b);
  }
  template <class T>
  FR_HD static T towards(T x, double size, double way) {
    return add_towards(x, way < 0 ? -size : size);
  }
};
struct ByMode {
  template <class T>
  FR_HD static T add(T a, T b) {
    return a + b;
  }
  template <class T>
  FR_HD static T towards(T x, double size, double way) {  // mirrored where the sign is minus
    const T sum = static_cast<T>(flip(static_cast<double>(x), way) + size);
    return flip(sum, static_cast<T>(way));
  }
};

}  // namespace fastrobust
