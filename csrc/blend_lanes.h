// Four stretches of a blend at once, one in each lane of the AVX registers. Processors without AVX2 have none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MEGASCRATCH_AVX2 __attribute__((target("avx2")))
#endif

namespace megascratch {

constexpr std::int64_t kLanes = 4;


// Numbers that begin on a register's border: a load that crosses two cache lines costs twice.
class Aligned {
  public:
    Aligned(std::int64_t size, double value) : fours_((size + kLanes - 1) / kLanes) {
        for (Four& four : fours_) std::fill_n(four.numbers, kLanes, value);
    }

    double* data() { return fours_.data()->numbers; }
    const double* data() const { return fours_.data()->numbers; }
    double& operator[](std::int64_t place) { return data()[place]; }
    double operator[](std::int64_t place) const { return data()[place]; }
    std::int64_t size() const { return static_cast<std::int64_t>(fours_.size()) * kLanes; }

  private:
    struct alignas(kLanes * sizeof(double)) Four {
        double numbers[kLanes];
    };
    std::vector<Four> fours_;
};

// Where four stretches stand: [sets][kLanes] samples that each set has given, and [kLanes] samples of all sets.
struct Stretches {
    Aligned used;
    double given[kLanes];
};

#ifdef MEGASCRATCH_AVX2
inline bool has_lanes() { return __builtin_cpu_supports("avx2"); }

// An integer below 2^52 as 64 bits.
MEGASCRATCH_AVX2 inline __m256i integers(__m256d numbers) {
    const __m256d shift = _mm256_set1_pd(4503599627370496.0);  // 2^52: the number falls into the lowest bits
    return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(numbers, shift)), _mm256_castpd_si256(shift));
}

// Which set gives each stretch its next sample, and which of its samples, as numbers.
struct Chosen {
    __m256d set, sample;
};

// Few sets, whose numbers the compiler keeps in registers: the largest, then the first that is it.
template <int kSets>
MEGASCRATCH_AVX2 inline Chosen of_few(const double* share, double* used, __m256d total) {
    __m256d behind[kSets], most = _mm256_setzero_pd(), found = most, set = most, sample = most;
#pragma GCC unroll 8
    for (int d = 0; d < kSets; ++d) {
        behind[d] = _mm256_sub_pd(_mm256_mul_pd(_mm256_set1_pd(share[d]), total), _mm256_load_pd(used + d * kLanes));
        most = d ? _mm256_max_pd(most, behind[d]) : behind[d];
    }
#pragma GCC unroll 8
    for (int d = 0; d < kSets; ++d) {
        const __m256d equal = _mm256_cmp_pd(behind[d], most, _CMP_EQ_OQ), first = _mm256_andnot_pd(found, equal);
        const __m256d before = _mm256_load_pd(used + d * kLanes), one = _mm256_and_pd(first, _mm256_set1_pd(1.0));
        found = _mm256_or_pd(found, equal);
        set = _mm256_or_pd(set, _mm256_and_pd(first, _mm256_set1_pd(d)));
        sample = _mm256_or_pd(sample, _mm256_and_pd(first, before));
        _mm256_store_pd(used + d * kLanes, _mm256_add_pd(before, one));
    }
    return {set, sample};
}

// Many sets, in four quarters for the processor to work on side by side; the first one that is furthest behind. Quarters
// overlap where the number of sets does not divide by four.
MEGASCRATCH_AVX2 inline Chosen of_many(const double* share, double* used, __m256d total, std::int64_t sets) {
    constexpr int kQuarters = 4;
    const std::int64_t quarter = (sets + kQuarters - 1) / kQuarters;
    __m256d most[kQuarters], found[kQuarters], place = _mm256_setzero_pd();
    for (__m256d& one : most) one = _mm256_set1_pd(-std::numeric_limits<double>::infinity());
    for (__m256d& one : found) one = place;
    for (std::int64_t at = 0; at < quarter; ++at) {
#pragma GCC unroll 4
        for (int part = 0; part < kQuarters; ++part) {
            const std::int64_t d = std::min(part * quarter, sets - quarter) + at;
            const __m256d due = _mm256_mul_pd(_mm256_set1_pd(share[d]), total);
            const __m256d behind = _mm256_sub_pd(due, _mm256_load_pd(used + d * kLanes));
            const __m256d further = _mm256_cmp_pd(behind, most[part], _CMP_GT_OQ);
            most[part] = _mm256_max_pd(behind, most[part]);
            found[part] = _mm256_blendv_pd(found[part], place, further);
        }
        place = _mm256_add_pd(place, _mm256_set1_pd(1.0));
    }
    __m256d set = found[0];
    for (int part = 1; part < kQuarters; ++part) {
        const auto first = static_cast<double>(std::min(part * quarter, sets - quarter));
        const __m256d further = _mm256_cmp_pd(most[part], most[0], _CMP_GT_OQ);
        most[0] = _mm256_max_pd(most[part], most[0]);
        set = _mm256_blendv_pd(set, _mm256_add_pd(found[part], _mm256_set1_pd(first)), further);
    }
    alignas(32) double sets_now[kLanes], samples[kLanes];
    _mm256_store_pd(sets_now, set);
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        double& given = used[static_cast<std::int64_t>(sets_now[lane]) * kLanes + lane];
        samples[lane] = given;
        given += 1.0;
    }
    return {set, _mm256_load_pd(samples)};
}

// `steps` samples of each stretch; stretch l writes from l x `length` on. kSets: their number where it is small, else 0
// and `sets` says it.
template <int kSets>
MEGASCRATCH_AVX2 void run_lanes(const double* share, double* used, double* given, std::int64_t sets, std::int64_t steps,
                                std::int64_t length, std::int32_t* which, std::int64_t* sample) {
    const __m256d one = _mm256_set1_pd(1.0);
    __m256d total = _mm256_loadu_pd(given);
    for (std::int64_t step = 0; step < steps; ++step) {
        const __m256d least = _mm256_max_pd(total, one);
        Chosen now;
        if constexpr (kSets > 0)
            now = of_few<kSets>(share, used, least);
        else
            now = of_many(share, used, least, sets);
        total = _mm256_add_pd(total, one);
        alignas(32) std::int32_t sets_now[kLanes];
        alignas(32) std::int64_t samples[kLanes];
        _mm_store_si128(reinterpret_cast<__m128i*>(sets_now), _mm256_cvtpd_epi32(now.set));
        _mm256_store_si256(reinterpret_cast<__m256i*>(samples), integers(now.sample));
        for (std::int64_t lane = 0; lane < kLanes; ++lane) {
            which[lane * length + step] = sets_now[lane];
            sample[lane * length + step] = samples[lane];
        }
    }
    _mm256_storeu_pd(given, total);
}

inline void run(const Aligned& share, std::int64_t sets, Stretches& now, std::int64_t steps, std::int64_t length,
                std::int32_t* which, std::int64_t* sample) {
    using Run = decltype(&run_lanes<0>);
    constexpr Run few[] = {run_lanes<0>, run_lanes<1>, run_lanes<2>, run_lanes<3>, run_lanes<4>,
                           run_lanes<5>, run_lanes<6>, run_lanes<7>, run_lanes<8>};
    few[sets <= 8 ? sets : 0](share.data(), now.used.data(), now.given, sets, steps, length, which, sample);
}
#else
inline bool has_lanes() { return false; }

inline void run(const Aligned&, std::int64_t, Stretches&, std::int64_t, std::int64_t, std::int32_t*, std::int64_t*) {}
#endif

}  // namespace megascratch
