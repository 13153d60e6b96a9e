// The short way into an op: reads pointers, sizes and dtypes off plain CPU tensors (no torch header), and launches.
// Whatever is not a contiguous torch.Tensor of the expected kind is answered with False, and the caller takes the long
// way, which checks everything and explains.
#pragma once
#include <pybind11/pybind11.h>

#include <initializer_list>

#include "common/math.h"
#include "dlpack.h"
#include "fastrobust/logit_loss.h"
#include "fastrobust/perturb.h"

namespace fastrobust::plain {

constexpr int kInt64 = 4, kBool = 5, kInt32 = 6, kDtypes = 7;  // after those of DType
constexpr int kMostDims = 8;

// What `setup` hands over once.
struct Torch {
  PyObject* tensor = nullptr;      // the class torch.Tensor
  PyObject* dtypes[kDtypes] = {};  // in the order of DType, then int64, bool, int32
  PyObject* threads = nullptr;     // torch.get_num_threads
  PyObject* intercepting[3] = {};  // functions; None or 0 from each says that plain calls may be made
  const dlpack::ExchangeApi* exchange = nullptr;
  PyObject *dtype, *shape, *is_cpu, *requires_grad, *is_contiguous, *is_neg, *data_ptr;  // names
};
inline Torch& torch() {
  static Torch t;
  return t;
}

inline void setup(pybind11::object tensor, pybind11::tuple dtypes, pybind11::object threads,
                  pybind11::tuple intercepting) {
  Torch& t = torch();
  for (int i = 0; i < kDtypes; ++i) t.dtypes[i] = pybind11::object(dtypes[i]).release().ptr();
  for (int i = 0; i < 3; ++i) t.intercepting[i] = pybind11::object(intercepting[i]).release().ptr();
  t.threads = threads.release().ptr();
  const auto intern = [](const char* s) { return PyUnicode_InternFromString(s); };
  t.dtype = intern("dtype");
  t.shape = intern("shape");
  t.is_cpu = intern("is_cpu");
  t.requires_grad = intern("requires_grad");
  t.is_contiguous = intern("is_contiguous");
  t.is_neg = intern("is_neg");
  t.data_ptr = intern("data_ptr");
  if (pybind11::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    const pybind11::object capsule = tensor.attr("__dlpack_c_exchange_api__");
    const auto* api =
        static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api) PyErr_Clear();
    if (api && api->major == 1) t.exchange = api;
  }
  t.tensor = tensor.release().ptr();
}

// A contiguous CPU tensor.
struct View {
  void* data;
  int dtype, dims;
  int64_t shape[kMostDims];

  bool same_shape(const View& other) const {
    bool same = dims == other.dims;
    for (int i = 0; same && i < dims; ++i) same = shape[i] == other.shape[i];
    return same;
  }
  int64_t count(int from) const {
    int64_t n = 1;
    for (int i = from; i < dims; ++i) n *= shape[i];
    return n;
  }
};

inline bool is(PyObject* value, PyObject* expected) {  // takes over `value`
  Py_XDECREF(value);
  return value == expected;
}
inline bool method_is(PyObject* t, PyObject* name, PyObject* expected) {
  return is(PyObject_CallMethodNoArgs(t, name), expected);
}

// By DLPack.
inline bool read(const dlpack::ExchangeApi& api, PyObject* t, View* out) {
  dlpack::Tensor d;
  if (!api.tensor_from_object || api.tensor_from_object(t, &d) != 0) return false;
  if (d.device.type != dlpack::kCpu || d.dtype.lanes != 1 || d.ndim > kMostDims) return false;
  const int bits = d.dtype.bits;
  switch (d.dtype.code) {
    case dlpack::kFloat:
      out->dtype = bits == 32 ? 0 : bits == 64 ? 1 : bits == 16 ? 3 : -1;
      break;
    case dlpack::kBfloat:
      out->dtype = bits == 16 ? 2 : -1;
      break;
    case dlpack::kInt:
      out->dtype = bits == 64 ? kInt64 : bits == 32 ? kInt32 : -1;
      break;
    case dlpack::kBool:
      out->dtype = kBool;
      break;
    default:
      out->dtype = -1;
  }
  out->data = static_cast<char*>(d.data) + d.byte_offset;
  out->dims = d.ndim;
  int64_t dense = 1;
  for (int i = d.ndim - 1; i >= 0; --i) {
    if (d.shape[i] != 1 && d.strides && d.strides[i] != dense) return false;
    out->shape[i] = d.shape[i];
    dense *= d.shape[i];
  }
  return dense > 0 && out->dtype >= 0;
}

// By attributes, for a torch that lacks the exchange API.
inline bool read(PyObject* t, View* out) {
  const Torch& k = torch();
  PyObject* dtype = PyObject_GetAttr(t, k.dtype);
  out->dtype = -1;
  for (int i = 0; i < kDtypes; ++i) out->dtype = dtype == k.dtypes[i] ? i : out->dtype;
  Py_XDECREF(dtype);
  if (out->dtype < 0 || !is(PyObject_GetAttr(t, k.is_cpu), Py_True) || !method_is(t, k.is_contiguous, Py_True))
    return false;
  PyObject* address = PyObject_CallMethodNoArgs(t, k.data_ptr);
  out->data = address ? PyLong_AsVoidPtr(address) : nullptr;
  Py_XDECREF(address);
  PyObject* shape = out->data ? PyObject_GetAttr(t, k.shape) : nullptr;
  out->dims = shape ? static_cast<int>(PyTuple_GET_SIZE(shape)) : kMostDims + 1;
  for (int i = 0; i < out->dims && out->dims <= kMostDims; ++i)
    out->shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
  Py_XDECREF(shape);
  return out->dims <= kMostDims;
}

// Never leaves a Python error behind.
inline bool view(PyObject* t, View* out) {
  const Torch& k = torch();
  const bool done = reinterpret_cast<PyObject*>(Py_TYPE(t)) == k.tensor &&
                    (k.exchange ? read(*k.exchange, t, out) : read(t, out)) && method_is(t, k.is_neg, Py_False);
  if (!done && PyErr_Occurred()) PyErr_Clear();
  return done;
}

// Whether nothing traces, batches or intercepts calls.
inline bool direct() {
  for (PyObject* function : torch().intercepting) {
    PyObject* answer = PyObject_CallNoArgs(function);
    const bool nothing = answer == Py_None || (answer && PyLong_Check(answer) && PyLong_AsLong(answer) == 0);
    Py_XDECREF(answer);
    if (!nothing) return false;
  }
  return true;
}

inline int threads() {
  PyObject* answer = PyObject_CallNoArgs(torch().threads);
  const long count = answer ? PyLong_AsLong(answer) : 1;
  Py_XDECREF(answer);
  if (PyErr_Occurred()) PyErr_Clear();
  return static_cast<int>(count);
}

// Runs `launch(threads)`. Small work is done before another thread could start or use the GIL.
template <class Launch>
PyObject* run(bool small, const Launch& launch) {
  Status status;
  if (small) {
    status = launch(1);
  } else {
    const int team = threads();
    Py_BEGIN_ALLOW_THREADS;
    status = launch(team);
    Py_END_ALLOW_THREADS;
  }
  if (status == Status::no_memory) return PyErr_NoMemory();
  if (status == Status::ok) Py_RETURN_TRUE;
  Py_RETURN_FALSE;
}

// The place of `word` in the list, or -1.
inline int among(PyObject* word, std::initializer_list<const char*> words) {
  int at = 0;
  for (const char* w : words) {
    if (PyUnicode_Check(word) && PyUnicode_CompareWithASCIIString(word, w) == 0) return at;
    ++at;
  }
  return -1;
}

// (out, x_adv, x, grad, step, eps, norm, box, projection, flags) -> done
inline PyObject* pgd_step(PyObject*, PyObject* const* a, Py_ssize_t count) {
  if (count != 10) return PyErr_Format(PyExc_TypeError, "plain_pgd_step takes 10 arguments, got %zd", count);
  PyObject* box = a[7];
  if (!PyFloat_CheckExact(a[4]) || !PyFloat_CheckExact(a[5]) || !PyTuple_CheckExact(box) || PyTuple_GET_SIZE(box) != 2)
    Py_RETURN_FALSE;
  if (!PyFloat_CheckExact(PyTuple_GET_ITEM(box, 0)) || !PyFloat_CheckExact(PyTuple_GET_ITEM(box, 1))) Py_RETURN_FALSE;
  const double step = PyFloat_AS_DOUBLE(a[4]), eps = PyFloat_AS_DOUBLE(a[5]);
  const double lo = PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(box, 0)), hi = PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(box, 1));
  const int norm = among(a[6], {"Linf", "L2", "L1"}), projection = among(a[8], {"exact", "sequential"});
  if (norm < 0 || projection < 0 || !(eps >= 0 && is_finite(eps) && is_finite(step) && lo <= hi)) Py_RETURN_FALSE;

  const bool in_place = a[0] == a[1];
  View out, x_adv, x, grad, flags;
  if (!direct() || !view(a[1], &x_adv) || !view(a[2], &x) || !view(a[3], &grad)) Py_RETURN_FALSE;
  if (in_place ? !is(PyObject_GetAttr(a[1], torch().requires_grad), Py_False) : !view(a[0], &out)) Py_RETURN_FALSE;
  if (x_adv.dtype > 1 || x.dtype != x_adv.dtype || grad.dtype > 3 || x.dims < 1) Py_RETURN_FALSE;
  if (!x_adv.same_shape(x) || !grad.same_shape(x)) Py_RETURN_FALSE;
  flags.data = nullptr;
  if (a[9] != Py_None &&
      (!view(a[9], &flags) || flags.dtype != kInt32 || flags.dims != 1 || flags.shape[0] != x.shape[0]))
    Py_RETURN_FALSE;
  const PgdStep args{in_place ? x_adv.data : out.data,
                     x_adv.data,
                     x.data,
                     grad.data,
                     static_cast<DType>(x.dtype),
                     static_cast<DType>(grad.dtype),
                     x.shape[0],
                     x.count(1),
                     step,
                     nullptr,
                     Ball{static_cast<Norm>(norm), eps, nullptr, lo, hi, nullptr, nullptr, projection == 0},
                     static_cast<int32_t*>(flags.data)};
  return run(x.count(0) <= cpu::kSmallStep, [&](int threads) { return cpu::pgd_step(args, threads); });
}

// (logits, y, kind, smoothing, loss, prediction, correct, grad) -> done; False also for an invalid label
inline PyObject* logit_loss(PyObject*, PyObject* const* a, Py_ssize_t count) {
  if (count != 8) return PyErr_Format(PyExc_TypeError, "plain_logit_loss takes 8 arguments, got %zd", count);
  View logits, y, loss, prediction, correct, grad;
  if (!direct() || !PyFloat_CheckExact(a[3]) || !view(a[0], &logits) || !view(a[1], &y)) Py_RETURN_FALSE;
  if (!view(a[4], &loss) || !view(a[5], &prediction) || !view(a[6], &correct) || !view(a[7], &grad)) Py_RETURN_FALSE;
  if (logits.dtype > 3 || logits.dims != 2 || y.dtype != kInt64 || y.dims != 1) Py_RETURN_FALSE;
  if (y.shape[0] != logits.shape[0]) Py_RETURN_FALSE;
  int32_t invalid = 0;
  const LogitLoss args{logits.data,
                       static_cast<DType>(logits.dtype),
                       logits.shape[0],
                       logits.shape[1],
                       static_cast<Loss>(PyLong_AsLong(a[2])),
                       static_cast<const int64_t*>(y.data),
                       nullptr,
                       nullptr,
                       PyFloat_AS_DOUBLE(a[3]),
                       loss.data,
                       static_cast<int64_t*>(prediction.data),
                       static_cast<bool*>(correct.data),
                       grad.data,
                       &invalid};
  return run(logits.count(0) <= cpu::kSmallLoss, [&](int threads) {
    const Status status = cpu::logit_loss(args, threads);
    return invalid ? Status::bad_value : status;
  });
}

inline PyMethodDef methods[] = {
    {"plain_pgd_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(pgd_step)), METH_FASTCALL,
     "pgd_step on plain tensors: (out, x_adv, x, grad, step, eps, norm, box, projection, flags) -> done"},
    {"plain_logit_loss", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(logit_loss)), METH_FASTCALL,
     "logit_loss on plain tensors: (logits, y, kind, smoothing, loss, prediction, correct, grad) -> done"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace fastrobust::plain
