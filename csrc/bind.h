// One line per op, the same for CPU and CUDA: only the last argument (thread count or stream) differs.
#pragma once
#include <pybind11/pybind11.h>

#include <cstring>
#include <new>
#include <type_traits>

#include "fastrobust/logit_loss.h"
#include "fastrobust/perturb.h"

namespace fastrobust {

using Address = uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// threads stays an int; a CUDA stream comes as an integer and goes on as a pointer.
inline int where(int threads, int*) { return threads; }
inline void* where(Address stream, void**) { return pointer<void>(stream); }

inline void check(Status status) {
  if (status == Status::bad_dtype) throw pybind11::type_error("fastrobust: unsupported dtype");
  if (status == Status::no_memory) throw std::bad_alloc();
  if (status != Status::ok) throw std::runtime_error("fastrobust: kernel launch failed");
}

template <class Where>
void bind_ops(pybind11::module_& m, Status (*step)(const PgdStep&, Where), Status (*start)(const RandomStart&, Where),
              Status (*loss)(const LogitLoss&, Where)) {
  namespace py = pybind11;
  using Raw = std::conditional_t<std::is_pointer_v<Where>, Address, int>;

  m.def("pgd_step",
        [step](Address out, Address x_adv, Address x, Address grad, int dtype, int grad_dtype, int64_t batch,
               int64_t dim, double alpha, Address alpha_each, int norm, double eps, Address eps_each, double lo,
               double hi, Address lo_each, Address hi_each, bool exact, Address flags, Raw where_to) {
          const PgdStep args{pointer<void>(out),
                             pointer<void>(x_adv),
                             pointer<void>(x),
                             pointer<void>(grad),
                             static_cast<DType>(dtype),
                             static_cast<DType>(grad_dtype),
                             batch,
                             dim,
                             alpha,
                             pointer<void>(alpha_each),
                             Ball{static_cast<Norm>(norm), eps, pointer<void>(eps_each), lo, hi, pointer<void>(lo_each),
                                  pointer<void>(hi_each), exact},
                             pointer<int32_t>(flags)};
          Status status;
          {
            py::gil_scoped_release release;
            status = step(args, where(where_to, static_cast<Where*>(nullptr)));
          }
          check(status);
        });

  m.def("random_start", [start](Address out, Address x, int dtype, int64_t batch, int64_t dim, int norm, double eps,
                                Address eps_each, double lo, double hi, Address lo_each, Address hi_each, uint64_t seed,
                                Address index, uint32_t draw, Raw where_to) {
    const RandomStart args{pointer<void>(out),
                           pointer<void>(x),
                           static_cast<DType>(dtype),
                           batch,
                           dim,
                           Ball{static_cast<Norm>(norm), eps, pointer<void>(eps_each), lo, hi, pointer<void>(lo_each),
                                pointer<void>(hi_each), true},
                           seed,
                           pointer<int64_t>(index),
                           draw};
    Status status;
    {
      py::gil_scoped_release release;
      status = start(args, where(where_to, static_cast<Where*>(nullptr)));
    }
    check(status);
  });

  m.def("logit_loss", [loss](Address logits, int dtype, int64_t batch, int64_t classes, int kind, Address label,
                             Address target, Address reference, double smoothing, Address value, Address prediction,
                             Address correct, Address grad, Raw where_to) {
    int32_t invalid = 0;  // counted where the kernel's memory is ours, that is on the CPU
    const LogitLoss args{pointer<void>(logits),
                         static_cast<DType>(dtype),
                         batch,
                         classes,
                         static_cast<Loss>(kind),
                         pointer<int64_t>(label),
                         pointer<int64_t>(target),
                         pointer<void>(reference),
                         smoothing,
                         pointer<void>(value),
                         pointer<int64_t>(prediction),
                         pointer<bool>(correct),
                         pointer<void>(grad),
                         std::is_pointer_v<Where> ? nullptr : &invalid};
    Status status;
    {
      py::gil_scoped_release release;
      status = loss(args, where(where_to, static_cast<Where*>(nullptr)));
    }
    check(status);
    return invalid;
  });
}

}  // namespace fastrobust
