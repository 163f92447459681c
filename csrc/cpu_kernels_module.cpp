// The module megascratch.layers._cpu_kernels: csrc/cpu_kernels.h over memory that is given by its address, cut into
// parts for the threads that torch has. Who calls answers for types and sizes, as megascratch/layers/kernels/cpu.py
// does; the GIL is free while a kernel runs.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu_kernels.h"

// The OpenMP runtime that torch has brought along: its threads wait for work already, and others would be in their way.
// Where there is none, one thread does all.
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
__attribute__((weak)) int omp_get_max_threads();
__attribute__((weak)) int omp_get_num_threads();
__attribute__((weak)) int omp_get_thread_num();
}

namespace py = pybind11;
using namespace megascratch;

namespace {

using Address = std::uintptr_t;
using Size = std::int64_t;

constexpr Size kGrain = 1 << 14;  // numbers: less is not worth a thread

bool has_threads() { return GOMP_parallel && omp_get_max_threads && omp_get_num_threads && omp_get_thread_num; }

Size parts_of(Size rows, Size numbers) {
    return has_threads() ? std::max<Size>(1, std::min<Size>({numbers / kGrain, rows, omp_get_max_threads()})) : 1;
}

// Calls f(part, first, last) for so many parts of `rows`, at the same time.
template <typename F>
void in_parts(Size parts, Size rows, F f) {
    if (parts <= 1) return f(0, 0, rows);
    struct Job {
        F& f;
        Size rows;
    } job{f, rows};
    const auto body = [](void* argument) {
        const Job& job = *static_cast<Job*>(argument);
        const Size part = omp_get_thread_num(), parts = omp_get_num_threads();  // there may be fewer than were asked for
        job.f(part, job.rows * part / parts, job.rows * (part + 1) / parts);
    };
    GOMP_parallel(body, &job, static_cast<unsigned>(parts), 0);
}

template <typename T>
T* at(Address address, Size place = 0) {
    return reinterpret_cast<T*>(address) + place;
}

template <typename T, bool by_tanh>
void bind_gelu(py::module_& module, const char* name) {
    const py::call_guard<py::gil_scoped_release> free;
    module.def(name, [](Address x, Address grad, Address grad_x, Size count) {
        in_parts(parts_of(count, count), count, [=](Size, Size first, Size last) {
            gelu_backward<T, by_tanh>(at<T>(x, first), at<T>(grad, first), at<T>(grad_x, first), last - first);
        });
    }, free);
}

template <typename T>
void bind_rows(py::module_& module) {
    const py::call_guard<py::gil_scoped_release> free;
    module.def("swiglu", [](Address x, Address out, Size rows, Size width) {
        in_parts(parts_of(rows, rows * width), rows, [=](Size, Size first, Size last) {
            swiglu<T>(at<T>(x, 2 * first * width), at<T>(out, first * width), last - first, width);
        });
    }, free);
    module.def("swiglu_backward", [](Address x, Address grad, Address grad_x, Size rows, Size width) {
        in_parts(parts_of(rows, rows * width), rows, [=](Size, Size first, Size last) {
            swiglu_backward<T>(at<T>(x, 2 * first * width), at<T>(grad, first * width),
                               at<T>(grad_x, 2 * first * width), last - first, width);
        });
    }, free);
    module.def("rms_norm", [](Address x, Address weight, double epsilon, Address out, Address scale, Size rows,
                              Size width) {
        in_parts(parts_of(rows, rows * width), rows, [=](Size, Size first, Size last) {
            rms_norm<T>(at<T>(x, first * width), at<T>(weight), static_cast<T>(epsilon), at<T>(out, first * width),
                        at<T>(scale, first), last - first, width);
        });
    }, free);
    module.def("rms_norm_backward", [](Address x, Address weight, Address scale, Address grad, Address grad_x,
                                       Address grad_weight, Size rows, Size width) {
        const Size parts = parts_of(rows, rows * width);
        std::vector<T> sums(parts * width);  // of the weight's gradient, one for each part
        in_parts(parts, rows, [=, sums = sums.data()](Size part, Size first, Size last) {
            rms_norm_backward<T>(at<T>(x, first * width), at<T>(weight), at<T>(scale, first), at<T>(grad, first * width),
                                 at<T>(grad_x, first * width), sums + part * width, last - first, width);
        });
        for (Size i = 0; i < width; ++i) {
            T total = 0;
            for (Size part = 0; part < parts; ++part) total += sums[part * width + i];
            *at<T>(grad_weight, i) = total;
        }
    }, free);
}

template <typename T>
void bind_attention(py::module_& module) {
    const py::call_guard<py::gil_scoped_release> free;
    module.def("causal_softmax", [](Address x, Size count, Size rows, Size columns, Size seen, double scale) {
        in_parts(parts_of(count, count * rows * columns), count, [=](Size, Size first, Size last) {
            causal_softmax<T>(at<T>(x, first * rows * columns), last - first, rows, columns, seen,
                              static_cast<T>(scale));
        });
    }, free);
    module.def("causal_softmax_backward", [](Address weights, Address grad, Size count, Size rows, Size columns,
                                             Size seen, double scale) {
        in_parts(parts_of(count, count * rows * columns), count, [=](Size, Size first, Size last) {
            const Size from = first * rows * columns;
            causal_softmax_backward<T>(at<T>(weights, from), at<T>(grad, from), last - first, rows, columns, seen,
                                       static_cast<T>(scale));
        });
    }, free);
    module.def("turn", [](Address x, Size x_b, Size x_n, Size x_s, Address out, Size out_b, Size out_n, Size out_s,
                          Address cos, Size cos_b, Size, Size cos_s, Address sin, Size sin_b, Size, Size sin_s, Size b,
                          Size n, Size s, Size half, bool back) {
        in_parts(parts_of(s, 2 * b * n * s * half), s, [=](Size, Size first, Size last) {
            turn<T>(at<T>(x, first * x_s), {x_b, x_n, x_s}, at<T>(out, first * out_s), {out_b, out_n, out_s},
                    at<T>(cos, first * cos_s), {cos_b, 0, cos_s}, at<T>(sin, first * sin_s), {sin_b, 0, sin_s},
                    {b, n, last - first}, half, back);
        });
    }, free);
}

template <typename T>
void bind(py::module_ module) {
    bind_gelu<T, false>(module, "gelu_backward");
    bind_gelu<T, true>(module, "gelu_tanh_backward");
    bind_rows<T>(module);
    bind_attention<T>(module);
}

}  // namespace

PYBIND11_MODULE(_cpu_kernels, module) {
    module.doc() = "Parts of a layer in one pass over memory: addresses in.";
    module.def("has_threads", &has_threads);
    module.def("is_tuned", [] { return kTuned; });
    bind<float>(module.def_submodule("f32"));
    bind<double>(module.def_submodule("f64"));
}
