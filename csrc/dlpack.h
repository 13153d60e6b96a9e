// The part of DLPack's C exchange API (version 1.3) that reads a tensor: torch.Tensor carries the table as
// `__dlpack_c_exchange_api__` from torch 2.10 on. See https://dmlc.github.io/dlpack/latest/python_spec.html.
#pragma once
#include <cstdint>

namespace fastrobust::dlpack {

constexpr int kCpu = 1;
enum Code : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Tensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major, minor;
  void* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrows; 0, or -1 and a Python error
  void* current_stream;
};

}  // namespace fastrobust::dlpack
