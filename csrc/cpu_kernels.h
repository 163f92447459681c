// Parts of a Transformer layer that torch computes in several passes over memory, each in one: on one core, which has
// no bandwidth to spare beside its matrix products, they are what is left to win. T is float or double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace megascratch {

// One body, compiled for several generations of processors; the loader takes the newest that this one has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define MEGASCRATCH_KERNEL __attribute__((target_clones("avx512f", "avx2", "default")))
constexpr bool kTuned = true;
#else
#define MEGASCRATCH_KERNEL
#if defined(__x86_64__)  // for the oldest alone, and torch has passes for the newest
constexpr bool kTuned = false;
#else
constexpr bool kTuned = true;
#endif
#endif
#define MEGASCRATCH_INLINE inline __attribute__((always_inline))

template <typename T>
struct Real;

template <>
struct Real<float> {
    using Bits = std::uint32_t;
    static constexpr std::int64_t mantissa = 23, terms = 7, factorial = 5040;
    static constexpr float most = 87, shift = 0x1.8p23f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <>
struct Real<double> {
    using Bits = std::uint64_t;
    static constexpr std::int64_t mantissa = 52, terms = 13, factorial = 6227020800;
    static constexpr double most = 708, shift = 0x1.8p52, ln2_high = 6.93147180369123816490e-01,
                            ln2_low = 1.90821492927058770002e-10;
};

// As many numbers as one instruction takes at the most; the compiler cuts them up for processors with narrower ones.
template <typename T>
struct Lanes {
    typedef T Values __attribute__((vector_size(64)));
    typedef typename Real<T>::Bits Bits __attribute__((vector_size(64)));
    static constexpr std::int64_t count = 64 / sizeof(T);
};
template <typename T>
using Values = typename Lanes<T>::Values;

// n numbers; the other lanes are 0.
template <typename T>
MEGASCRATCH_INLINE Values<T> load(const T* from, std::int64_t n = Lanes<T>::count) {
    Values<T> values = {};
    std::memcpy(&values, from, n * sizeof(T));
    return values;
}

template <typename T>
MEGASCRATCH_INLINE void store(const Values<T>& values, T* to, std::int64_t n = Lanes<T>::count) {
    std::memcpy(to, &values, n * sizeof(T));
}

// `count` and the rest of its last lanes, as far as there is `room`.
template <typename T>
MEGASCRATCH_INLINE std::int64_t in_lanes(std::int64_t count, std::int64_t room) {
    return std::min((count + Lanes<T>::count - 1) / Lanes<T>::count * Lanes<T>::count, room);
}

// Calls f(i, n) for stretches of n numbers that together are 0 .. count - 1.
template <typename T, typename F>
MEGASCRATCH_INLINE void each(std::int64_t count, F f) {
    std::int64_t i = 0;
    for (; i + Lanes<T>::count <= count; i += Lanes<T>::count) f(i, Lanes<T>::count);
    if (i < count) f(i, count - i);
}

// All lanes brought together, by halves: one after the other would take four times as long.
template <typename T, typename Join>
MEGASCRATCH_INLINE T joined(const Values<T>& values, Join join) {
    T lanes[Lanes<T>::count];
    store<T>(values, lanes);
    for (int half = Lanes<T>::count / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] = join(lanes[lane], lanes[lane + half]);
    return lanes[0];
}

template <typename T>
MEGASCRATCH_INLINE T sum(const Values<T>& values) {
    return joined<T>(values, [](T a, T b) { return a + b; });
}

// e^x, to about one unit in the last place; x is cut to +-`most`, inside of which nothing over- or underflows. With
// x = n ln 2 + r it is 2^n e^r, and e^r its Taylor series. Adding `shift` rounds to a whole number, which then stands in
// the lowest bits of the sum. A NaN stays one.
template <typename T>
MEGASCRATCH_INLINE Values<T> exp_of(Values<T> x) {
    using R = Real<T>;
    using Bits = typename Lanes<T>::Bits;
    const Values<T> most = Values<T>{} + R::most;
    x = x < -most ? -most : x;
    x = x > most ? most : x;
    const Values<T> shifted = x * T(1.44269504088896340736) + R::shift, n = shifted - R::shift;
    const Values<T> r = (x - n * R::ln2_high) - n * R::ln2_low;
    std::int64_t factorial = R::factorial;
    Values<T> power = Values<T>{} + T(1) / factorial;
    for (int k = R::terms; k >= 1; --k) {
        factorial /= k;
        power = power * r + T(1) / factorial;
    }
    return (Values<T>)((Bits)power + ((Bits)shifted << R::mantissa));
}

template <typename T>
MEGASCRATCH_INLINE Values<T> sigmoid(const Values<T>& x) {
    return T(1) / (T(1) + exp_of<T>(-x));
}

// Of the normal distribution: how much lies below x, and how densely it lies there.
template <typename T>
struct Bell {
    Values<T> below, density;
};

MEGASCRATCH_INLINE Bell<float> bell(const Values<float>& x) {
    // Abramowitz and Stegun 7.1.26, good to 1.5e-7.
    const Values<float> z = (x < 0 ? -x : x) * float(M_SQRT1_2), t = 1 / (1 + 0.3275911f * z), e = exp_of<float>(-z * z);
    const Values<float> series = (((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t;
    const Values<float> tail = 0.5f * (series + 0.254829592f) * t * e;
    return {x < 0 ? tail : 1 - tail, e * float(0.5 * M_2_SQRTPI * M_SQRT1_2)};
}

MEGASCRATCH_INLINE Bell<double> bell(const Values<double>& x) {
    Bell<double> found = {{}, exp_of<double>(-0.5 * x * x) * (0.5 * M_2_SQRTPI * M_SQRT1_2)};
    for (int lane = 0; lane < Lanes<double>::count; ++lane) found.below[lane] = 0.5 * std::erfc(-M_SQRT1_2 * x[lane]);
    return found;
}

// Of the approximation (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 of Phi, and its derivative.
template <typename T>
MEGASCRATCH_INLINE Bell<T> tanh_bell(const Values<T>& x) {
    const T slope = T(M_2_SQRTPI * M_SQRT2), cubic = T(0.044715);  // (1 + tanh u) / 2 = sigmoid(2 u)
    const Values<T> below = sigmoid<T>(slope * (x + cubic * x * x * x));
    return {below, below * (1 - below) * slope * (1 + 3 * cubic * x * x)};
}

template <typename T, bool by_tanh>
MEGASCRATCH_INLINE Bell<T> bell_of(const Values<T>& x) {
    if constexpr (by_tanh)
        return tanh_bell<T>(x);
    else
        return bell(x);
}

// The gradient of x * Phi(x) (Hendrycks, Gimpel 2016, arXiv 1606.08415), or of its approximation by tanh.
template <typename T, bool by_tanh>
MEGASCRATCH_KERNEL void gelu_backward(const T* x, const T* grad, T* grad_x, std::int64_t count) {
    each<T>(count, [=](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
        const Values<T> values = load(x + i, n);
        const Bell<T> at = bell_of<T, by_tanh>(values);
        store<T>(load(grad + i, n) * (at.below + values * at.density), grad_x + i, n);
    });
}

// x [rows, gate | up], each `width` wide -> out [rows, width] = silu(gate) * up.
template <typename T>
MEGASCRATCH_KERNEL void swiglu(const T* x, T* out, std::int64_t rows, std::int64_t width) {
    for (; rows > 0; --rows, x += 2 * width, out += width)
        each<T>(width, [=](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            const Values<T> gate = load(x + i, n), up = load(x + width + i, n);
            store<T>(gate * sigmoid<T>(gate) * up, out + i, n);
        });
}

// The gradient of swiglu: grad [rows, width] -> grad_x [rows, gate | up].
template <typename T>
MEGASCRATCH_KERNEL void swiglu_backward(const T* x, const T* grad, T* grad_x, std::int64_t rows, std::int64_t width) {
    for (; rows > 0; --rows, x += 2 * width, grad += width, grad_x += 2 * width)
        each<T>(width, [=](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            const Values<T> gate = load(x + i, n), up = load(x + width + i, n), along = load(grad + i, n);
            const Values<T> share = sigmoid<T>(gate);
            store<T>(along * up * share * (1 + gate * (1 - share)), grad_x + i, n);
            store<T>(along * gate * share, grad_x + width + i, n);
        });
}

// out = x / rms(x) * weight for each row of x [rows, width]; scale [rows] = 1 / rms(x).
template <typename T>
MEGASCRATCH_KERNEL void rms_norm(const T* x, const T* weight, T epsilon, T* out, T* scale, std::int64_t rows,
                                 std::int64_t width) {
    for (std::int64_t row = 0; row < rows; ++row, x += width, out += width) {
        Values<T> squares = {};
        each<T>(width, [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            const Values<T> values = load(x + i, n);
            squares += values * values;
        });
        const T factor = scale[row] = 1 / std::sqrt(sum<T>(squares) / width + epsilon);
        each<T>(width, [=](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            store<T>(load(x + i, n) * factor * load(weight + i, n), out + i, n);
        });
    }
}

// The gradients of rms_norm: grad [rows, width] -> grad_x [rows, width], and to grad_weight [width] is added.
template <typename T>
MEGASCRATCH_KERNEL void rms_norm_backward(const T* x, const T* weight, const T* scale, const T* grad, T* grad_x,
                                          T* grad_weight, std::int64_t rows, std::int64_t width) {
    for (std::int64_t row = 0; row < rows; ++row, x += width, grad += width, grad_x += width) {
        const T factor = scale[row];
        Values<T> along = {};
        each<T>(width, [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            along += load(grad + i, n) * load(x + i, n) * load(weight + i, n);
        });
        const T away = sum<T>(along) * factor * factor * factor / width;  // the scale's own dependence on x
        each<T>(width, [=](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            const Values<T> value = load(x + i, n), pull = load(grad + i, n) * factor;
            store<T>(pull * load(weight + i, n) - value * away, grad_x + i, n);
            store<T>(load(grad_weight + i, n) + pull * value, grad_weight + i, n);
        });
    }
}

// The values of lanes i, i + 1 .. that come before `end`; the others are `rest`.
template <typename T>
MEGASCRATCH_INLINE Values<T> before(std::int64_t end, std::int64_t i, const Values<T>& values, T rest) {
    Values<T> place;
    for (int lane = 0; lane < Lanes<T>::count; ++lane) place[lane] = lane;
    return place < T(end - i) ? values : Values<T>{} + rest;
}

// Scores [count, rows, columns] of queries first .. first + rows - 1 with keys 0 .. columns - 1 -> the weights of their
// softmax, times `scale` before, over the keys so far, in place; a later key's weight is 0.
template <typename T>
MEGASCRATCH_KERNEL void causal_softmax(T* x, std::int64_t count, std::int64_t rows, std::int64_t columns,
                                       std::int64_t first, T scale) {
    for (std::int64_t row = 0; row < count * rows; ++row, x += columns) {
        const std::int64_t seen = std::min(first + row % rows + 1, columns), whole = in_lanes<T>(seen, columns);
        Values<T> most = Values<T>{} + std::numeric_limits<T>::lowest(), total = {};
        each<T>(whole, [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            const Values<T> values = before<T>(seen, i, load(x + i, n), std::numeric_limits<T>::lowest());
            most = most < values ? values : most;
        });
        const T peak = joined<T>(most, [](T a, T b) { return a < b ? b : a; });
        each<T>(whole, [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            const Values<T> weights = before<T>(seen, i, exp_of<T>((load(x + i, n) - peak) * scale), T(0));
            store<T>(weights, x + i, n);
            total += weights;
        });
        const T share = 1 / sum<T>(total);
        each<T>(whole, [=](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            store<T>(before<T>(seen, i, load(x + i, n) * share, T(0)), x + i, n);
        });
        std::fill(x + whole, x + columns, T(0));
    }
}

// The gradient of causal_softmax: that of the weights -> that of the scores, in place.
template <typename T>
MEGASCRATCH_KERNEL void causal_softmax_backward(const T* weights, T* grad, std::int64_t count, std::int64_t rows,
                                                std::int64_t columns, std::int64_t first, T scale) {
    for (std::int64_t row = 0; row < count * rows; ++row, weights += columns, grad += columns) {
        const std::int64_t seen = std::min(first + row % rows + 1, columns), whole = in_lanes<T>(seen, columns);
        Values<T> along = {};
        each<T>(whole, [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            along += load(grad + i, n) * load(weights + i, n);
        });
        const T mean = sum<T>(along);
        each<T>(whole, [=](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            store<T>(load(weights + i, n) * (load(grad + i, n) - mean) * scale, grad + i, n);
        });
        std::fill(grad + whole, grad + columns, T(0));
    }
}

// Sizes of [b, n, s] or, times, elements from one to the next.
struct Steps {
    std::int64_t b, n, s;
};

// Rotary positions: dims i and i + half of each head of x [b, n, s, 2 half] turn by the angle of b and s, whose cosine
// and sine are [b, s, half]; the other way round for the gradient.
template <typename T>
MEGASCRATCH_KERNEL void turn(const T* x, Steps from, T* out, Steps to, const T* cos, Steps at_cos, const T* sin,
                             Steps at_sin, Steps size, std::int64_t half, bool back) {
    const T sign = back ? -1 : 1;
    for (std::int64_t s = 0; s < size.s; ++s)
        for (std::int64_t b = 0; b < size.b; ++b)
            for (std::int64_t n = 0; n < size.n; ++n) {
                const T *p = x + b * from.b + n * from.n + s * from.s, *c = cos + b * at_cos.b + s * at_cos.s;
                const T* d = sin + b * at_sin.b + s * at_sin.s;
                T* q = out + b * to.b + n * to.n + s * to.s;
                each<T>(half, [=](std::int64_t i, std::int64_t m) __attribute__((always_inline)) {
                    const Values<T> u = load(p + i, m), v = load(p + half + i, m);
                    const Values<T> across = load(d + i, m) * sign, along = load(c + i, m);
                    store<T>(u * along - v * across, q + i, m);
                    store<T>(v * along + u * across, q + half + i, m);
                });
            }
}

}  // namespace megascratch
