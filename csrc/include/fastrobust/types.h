// Plain types shared by every launcher. No torch, no Python: pointers, sizes and numbers in, status out.
#pragma once
#include <cstdint>

namespace fastrobust {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
enum class Norm : int32_t { linf = 0, l2 = 1, l1 = 2 };

// What a launcher answers. Python turns anything but `ok` into an exception.
enum class Status : int32_t { ok = 0, bad_dtype = 1, launch_failed = 2, no_memory = 3, bad_value = 4 };

}  // namespace fastrobust
