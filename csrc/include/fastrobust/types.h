// Plain types shared by every launcher. No torch, no Python: pointers, sizes and numbers in, status out.
#pragma once
#include <cstdint>

namespace fastrobust {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
enum class Norm : int32_t { linf = 0, l2 = 1, l1 = 2 };

// Activations, with parameters a and b: the slope of leaky_relu, beta and threshold of softplus, alpha of elu, the ends
// of hardtanh.
enum class Function : int32_t {
  leaky_relu = 0,
  sigmoid = 1,
  tanh = 2,
  silu = 3,
  gelu = 4,
  gelu_tanh = 5,
  softplus = 6,
  elu = 7,
  hardtanh = 8,
  identity = 9,
  relu = 10
};

// What a launcher answers. Python turns anything but `ok` into an exception.
enum class Status : int32_t { ok = 0, bad_dtype = 1, launch_failed = 2, no_memory = 3, bad_value = 4 };

}  // namespace fastrobust
