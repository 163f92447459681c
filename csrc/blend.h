// Which data set gives the next sample: the one furthest behind its share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "arrays.h"

namespace megascratch {

// How far each data set is behind its share, and the one furthest behind; of equals the lowest. Arrays of `padded` sets,
// a multiple of 4; what is behind the last set has used infinitely many samples and never wins.
inline std::int64_t furthest_of_few(const double* share, const double* used, std::int64_t sets, double total) {
    std::int64_t first = 0;
    double most = share[0] * total - used[0];
    for (std::int64_t at = 1; at < sets; ++at) {
        const double behind = share[at] * total - used[at];
        if (__builtin_expect(behind > most, 0)) {  // few sets repeat themselves: a branch is well predicted
            most = behind;
            first = at;
        }
    }
    return first;
}

#ifdef __SSE2__
// Two passes over four sets at once: the largest, then where it is.
inline std::int64_t furthest_of_many(const double* share, const double* used, std::int64_t padded, double total,
                                     double* behind) {
    const __m128d totals = _mm_set1_pd(total);
    __m128d even = _mm_set1_pd(-std::numeric_limits<double>::infinity()), odd = even;
    for (std::int64_t at = 0; at < padded; at += 4) {
        const __m128d low = _mm_sub_pd(_mm_mul_pd(_mm_loadu_pd(share + at), totals), _mm_loadu_pd(used + at));
        const __m128d high = _mm_sub_pd(_mm_mul_pd(_mm_loadu_pd(share + at + 2), totals), _mm_loadu_pd(used + at + 2));
        _mm_storeu_pd(behind + at, low);
        _mm_storeu_pd(behind + at + 2, high);
        even = _mm_max_pd(even, low);
        odd = _mm_max_pd(odd, high);
    }
    even = _mm_max_pd(even, odd);
    const __m128d most = _mm_max_pd(even, _mm_shuffle_pd(even, even, 1));
    for (std::int64_t at = 0; at < padded; at += 4) {
        const int low = _mm_movemask_pd(_mm_cmpeq_pd(_mm_loadu_pd(behind + at), most));
        const int high = _mm_movemask_pd(_mm_cmpeq_pd(_mm_loadu_pd(behind + at + 2), most));
        if (low | high) return at + __builtin_ctz(low | high << 2);
    }
    return 0;
}
#else
inline std::int64_t furthest_of_many(const double* share, const double* used, std::int64_t padded, double total,
                                     double*) {
    return furthest_of_few(share, used, padded, total);
}
#endif

// Sample s goes to the data set with the largest weight x max(s, 1) - taken, ties to the lowest, among those that have
// not given `limit` samples yet. `taken` goes on from call to call.
inline void blend(const View<double>& weights, std::int64_t* taken, const View<std::int64_t>& limits,
                  std::int64_t count, std::int64_t* which, std::int64_t* sample) {
    constexpr double never = std::numeric_limits<double>::infinity();
    constexpr std::int64_t few = 24;
    const std::int64_t sets = weights.size(), padded = (sets + 3) / 4 * 4;
    std::vector<double> shares(padded, 0.0), used(padded, never), behind(padded);
    std::int64_t given = 0;
    for (std::int64_t d = 0; d < sets; ++d) {
        require(taken[d] >= 0 && taken[d] <= std::int64_t{1} << 48, "taken must be from 0 to 2^48");
        require(weights[d] >= 0 && weights[d] <= 1e9, "weights must be from 0 to 1e9");
        shares[d] = weights[d];
        if (taken[d] < limits[d]) used[d] = static_cast<double>(taken[d]);
        given += taken[d];
    }
    require(sets > 0 || count == 0, "there is no data set");
    double* now = used.data();
    for (std::int64_t at = 0; at < count; ++at, ++given) {
        const double total = static_cast<double>(std::max<std::int64_t>(given, 1));
        const std::int64_t best = sets <= few ? furthest_of_few(shares.data(), now, sets, total)
                                              : furthest_of_many(shares.data(), now, padded, total, behind.data());
        if (now[best] == never)
            throw std::invalid_argument("all data sets are used up after " + std::to_string(given) + " samples");
        which[at] = best;
        sample[at] = taken[best]++;
        now[best] = taken[best] < limits[best] ? now[best] + 1.0 : never;
    }
}

}  // namespace megascratch
