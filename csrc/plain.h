// The short way into an op: reads pointers, sizes and dtypes off plain CPU tensors through Python's C API (no torch
// header), and launches. Whatever is not a contiguous torch.Tensor of the expected kind is answered with False, and the
// caller takes the long way, which checks everything and explains.
#pragma once
#include <pybind11/pybind11.h>

#include "common/math.h"
#include "fastrobust/logit_loss.h"
#include "fastrobust/perturb.h"

namespace fastrobust::plain {

struct Names {
  PyObject *dtype, *shape, *is_cpu, *requires_grad, *is_contiguous, *is_neg, *data_ptr;
};

// Set once by `setup`: torch.Tensor, its dtypes in the order of DType and then int64 and bool, and interned names.
struct Torch {
  PyObject* tensor = nullptr;
  PyObject* dtypes[6] = {};
  Names names{};
};
inline Torch& torch() {
  static Torch t;
  return t;
}
constexpr int kInt64 = 4, kBool = 5;

inline void setup(pybind11::object tensor, pybind11::tuple dtypes) {
  Torch& t = torch();
  t.tensor = tensor.release().ptr();
  for (int i = 0; i < 6; ++i) t.dtypes[i] = pybind11::object(dtypes[i]).release().ptr();
  const auto intern = [](const char* s) { return PyUnicode_InternFromString(s); };
  t.names = {intern("dtype"),         intern("shape"),  intern("is_cpu"),  intern("requires_grad"),
             intern("is_contiguous"), intern("is_neg"), intern("data_ptr")};
}

struct View {
  void* data;
  int dtype;
  pybind11::object shape;

  int64_t size(int i) const { return PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i)); }
  int dims() const { return static_cast<int>(PyTuple_GET_SIZE(shape.ptr())); }
  bool same_shape(const View& other) const {
    return PyObject_RichCompareBool(shape.ptr(), other.shape.ptr(), Py_EQ) == 1;
  }
};

inline bool attribute_is(PyObject* t, PyObject* name, PyObject* expected) {
  PyObject* value = PyObject_GetAttr(t, name);
  Py_XDECREF(value);
  return value == expected;
}
inline bool method_is(PyObject* t, PyObject* name, PyObject* expected) {
  PyObject* value = PyObject_CallMethodNoArgs(t, name);
  Py_XDECREF(value);
  return value == expected;
}

// Whether t is a contiguous CPU tensor with memory of its own; never leaves a Python error behind.
inline bool view(PyObject* t, View* out) {
  const Torch& k = torch();
  if (reinterpret_cast<PyObject*>(Py_TYPE(t)) != k.tensor) return false;
  PyObject* dtype = PyObject_GetAttr(t, k.names.dtype);
  out->dtype = -1;
  for (int i = 0; i < 6; ++i) out->dtype = dtype == k.dtypes[i] ? i : out->dtype;
  Py_XDECREF(dtype);
  PyObject* address = nullptr;
  if (out->dtype >= 0 && attribute_is(t, k.names.is_cpu, Py_True) && method_is(t, k.names.is_contiguous, Py_True) &&
      method_is(t, k.names.is_neg, Py_False))
    address = PyObject_CallMethodNoArgs(t, k.names.data_ptr);
  out->data = address ? PyLong_AsVoidPtr(address) : nullptr;
  Py_XDECREF(address);
  out->shape = pybind11::reinterpret_steal<pybind11::object>(out->data ? PyObject_GetAttr(t, k.names.shape) : nullptr);
  if (PyErr_Occurred()) PyErr_Clear();
  return static_cast<bool>(out->shape);
}

// (out, x_adv, x, grad, step, eps, norm, lo, hi, exact, threads) -> bool
inline PyObject* pgd_step(PyObject*, PyObject* const* a, Py_ssize_t count) {
  if (count != 11) return PyErr_Format(PyExc_TypeError, "plain_pgd_step takes 11 arguments, got %zd", count);
  const bool in_place = a[0] == a[1];
  View out, x_adv, x, grad;
  for (int i : {4, 5, 7, 8}) {
    if (!PyFloat_CheckExact(a[i])) Py_RETURN_FALSE;
  }
  const double step = PyFloat_AS_DOUBLE(a[4]), eps = PyFloat_AS_DOUBLE(a[5]);
  const double lo = PyFloat_AS_DOUBLE(a[7]), hi = PyFloat_AS_DOUBLE(a[8]);
  const long norm = PyLong_AsLong(a[6]), threads = PyLong_AsLong(a[10]);
  if (!(eps >= 0 && is_finite(eps) && is_finite(step) && lo <= hi)) Py_RETURN_FALSE;
  if (!view(a[1], &x_adv) || !view(a[2], &x) || !view(a[3], &grad)) Py_RETURN_FALSE;
  if (!in_place && !view(a[0], &out)) Py_RETURN_FALSE;
  if (in_place && !attribute_is(a[1], torch().names.requires_grad, Py_False)) Py_RETURN_FALSE;
  const int dims = x.dims();
  if (x_adv.dtype > 1 || x.dtype != x_adv.dtype || grad.dtype > 3 || dims < 1) Py_RETURN_FALSE;
  if (!x_adv.same_shape(x) || !grad.same_shape(x)) Py_RETURN_FALSE;
  int64_t dim = 1;
  for (int i = 1; i < dims; ++i) dim *= x.size(i);
  const PgdStep args{in_place ? x_adv.data : out.data,
                     x_adv.data,
                     x.data,
                     grad.data,
                     static_cast<DType>(x.dtype),
                     static_cast<DType>(grad.dtype),
                     x.size(0),
                     dim,
                     step,
                     nullptr,
                     Ball{static_cast<Norm>(norm), eps, nullptr, lo, hi, nullptr, nullptr, a[9] == Py_True},
                     nullptr};
  Py_BEGIN_ALLOW_THREADS;
  cpu::pgd_step(args, static_cast<int>(threads));
  Py_END_ALLOW_THREADS;
  Py_RETURN_TRUE;
}

// (logits, y, kind, smoothing, loss, prediction, correct, grad, threads) -> bool; False also for an invalid label
inline PyObject* logit_loss(PyObject*, PyObject* const* a, Py_ssize_t count) {
  if (count != 9) return PyErr_Format(PyExc_TypeError, "plain_logit_loss takes 9 arguments, got %zd", count);
  View logits, y, loss, prediction, correct, grad;
  if (!PyFloat_CheckExact(a[3]) || !view(a[0], &logits) || !view(a[1], &y)) Py_RETURN_FALSE;
  if (!view(a[4], &loss) || !view(a[5], &prediction) || !view(a[6], &correct) || !view(a[7], &grad)) Py_RETURN_FALSE;
  if (logits.dtype > 3 || logits.dims() != 2 || y.dtype != kInt64 || y.dims() != 1) Py_RETURN_FALSE;
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const long kind = PyLong_AsLong(a[2]), threads = PyLong_AsLong(a[8]);
  if (y.size(0) != batch) Py_RETURN_FALSE;
  int32_t invalid = 0;
  const LogitLoss args{logits.data,
                       static_cast<DType>(logits.dtype),
                       batch,
                       classes,
                       static_cast<Loss>(kind),
                       static_cast<const int64_t*>(y.data),
                       nullptr,
                       nullptr,
                       PyFloat_AS_DOUBLE(a[3]),
                       loss.data,
                       static_cast<int64_t*>(prediction.data),
                       static_cast<bool*>(correct.data),
                       grad.data,
                       &invalid};
  Py_BEGIN_ALLOW_THREADS;
  cpu::logit_loss(args, static_cast<int>(threads));
  Py_END_ALLOW_THREADS;
  return PyBool_FromLong(invalid == 0);
}

inline PyMethodDef methods[] = {
    {"plain_pgd_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(pgd_step)), METH_FASTCALL,
     "pgd_step on plain tensors: (out, x_adv, x, grad, step, eps, norm, lo, hi, exact, threads) -> done"},
    {"plain_logit_loss", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(logit_loss)), METH_FASTCALL,
     "logit_loss on plain tensors: (logits, y, kind, smoothing, loss, prediction, correct, grad, threads) -> done"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace fastrobust::plain
