// The types of elements: which one a tensor has, what it is computed in, how results are stored.
#pragma once
#include <type_traits>

#include "fastrobust/types.h"
#include "math.h"

namespace fastrobust {

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
FR_HD S store_as(Compute<S> v) {
  if constexpr (std::is_same_v<S, Compute<S>>)
    return v;
  else
    return store<S>(v);
}

// f(S{}) for the type that dtype names.
template <class F>
Status with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(BFloat16{});
    case DType::f16:
      return f(Half{});
  }
  return Status::bad_dtype;
}

}  // namespace fastrobust
