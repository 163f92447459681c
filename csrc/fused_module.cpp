// The module megascratch.layers._fused: csrc/fused.h over memory that is given by its address. Who calls answers for
// types and sizes, as megascratch/layers/fused.py does; the GIL is free while a kernel runs.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "fused.h"

namespace py = pybind11;
using namespace megascratch;

namespace {

using Address = std::uintptr_t;
using Size = std::int64_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

template <typename T>
void bind(py::module_ module) {
    const py::call_guard<py::gil_scoped_release> free;
    module.def("swiglu", [](Address x, Address out, Size rows, Size width) {
        swiglu<T>(at<T>(x), at<T>(out), rows, width);
    }, free);
    module.def("swiglu_backward", [](Address x, Address grad, Address grad_x, Size rows, Size width) {
        swiglu_backward<T>(at<T>(x), at<T>(grad), at<T>(grad_x), rows, width);
    }, free);
    module.def("rms_norm", [](Address x, Address weight, double epsilon, Address out, Address scale, Size rows,
                              Size width) {
        rms_norm<T>(at<T>(x), at<T>(weight), static_cast<T>(epsilon), at<T>(out), at<T>(scale), rows, width);
    }, free);
    module.def("rms_norm_backward", [](Address x, Address weight, Address scale, Address grad, Address grad_x,
                                       Address grad_weight, Size rows, Size width) {
        rms_norm_backward<T>(at<T>(x), at<T>(weight), at<T>(scale), at<T>(grad), at<T>(grad_x), at<T>(grad_weight),
                             rows, width);
    }, free);
    module.def("causal_softmax", [](Address x, Size count, Size rows, Size columns, Size first, double scale) {
        causal_softmax<T>(at<T>(x), count, rows, columns, first, static_cast<T>(scale));
    }, free);
    module.def("causal_softmax_backward", [](Address weights, Address grad, Size count, Size rows, Size columns,
                                             Size first, double scale) {
        causal_softmax_backward<T>(at<T>(weights), at<T>(grad), count, rows, columns, first, static_cast<T>(scale));
    }, free);
    module.def("turn", [](Address x, Size x_b, Size x_n, Size x_s, Address out, Size out_b, Size out_n, Size out_s,
                          Address cos, Size cos_b, Size cos_n, Size cos_s, Address sin, Size sin_b, Size sin_n,
                          Size sin_s, Size b, Size n, Size s, Size half, bool back) {
        turn<T>(at<T>(x), {x_b, x_n, x_s}, at<T>(out), {out_b, out_n, out_s}, at<T>(cos), {cos_b, cos_n, cos_s},
                at<T>(sin), {sin_b, sin_n, sin_s}, {b, n, s}, half, back);
    }, free);
}

}  // namespace

PYBIND11_MODULE(_fused, module) {
    module.doc() = "Parts of a layer in one pass over memory: addresses in.";
    bind<float>(module.def_submodule("f32"));
    bind<double>(module.def_submodule("f64"));
}
