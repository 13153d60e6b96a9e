// Noisy copies and votes, the same for CPU and CUDA: only the last argument (thread count or stream) differs.
#pragma once
#include "bind.h"
#include "fastrobust/noise.h"

namespace fastrobust {

template <class Where>
void bind_noise(pybind11::module_& m, Status (*copies)(const NoisyCopies&, Where),
                Status (*votes)(const AddVotes&, Where)) {
  namespace py = pybind11;
  using Raw = std::conditional_t<std::is_pointer_v<Where>, Address, int>;

  m.def("noisy_copies", [copies](Address out, Address x, int dtype, int out_dtype, int64_t images, int64_t slots,
                                 int64_t dim, Address image, Address copy, Address index, uint64_t seed, int kind,
                                 double scale, Address scale_each, int sphere, int64_t channels, Raw where_to) {
    const NoisyCopies args{pointer<void>(out),
                           pointer<const void>(x),
                           static_cast<DType>(dtype),
                           static_cast<DType>(out_dtype),
                           images,
                           slots,
                           dim,
                           pointer<const int64_t>(image),
                           pointer<const int64_t>(copy),
                           pointer<const int64_t>(index),
                           seed,
                           static_cast<NoiseKind>(kind),
                           scale,
                           pointer<const double>(scale_each),
                           sphere >= 0,
                           static_cast<Norm>(sphere < 0 ? 0 : sphere),
                           channels};
    Status status;
    {
      py::gil_scoped_release release;
      status = copies(args, where(where_to, static_cast<Where*>(nullptr)));
    }
    check(status);
  });

  m.def("add_votes", [votes](Address counts, Address logits, int dtype, Address image, int64_t slots, int64_t classes,
                             int64_t images, Raw where_to) {
    const AddVotes args{pointer<int64_t>(counts),
                        pointer<const void>(logits),
                        static_cast<DType>(dtype),
                        pointer<const int64_t>(image),
                        slots,
                        classes,
                        images};
    Status status;
    {
      py::gil_scoped_release release;
      status = votes(args, where(where_to, static_cast<Where*>(nullptr)));
    }
    check(status);
  });
}

}  // namespace fastrobust
