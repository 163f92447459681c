// Which data set gives the next sample: the one furthest behind its share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "arrays.h"

namespace megascratch {

// Sample s goes to the data set with the largest weight x max(s, 1) - taken, ties to the lowest, among those that have
// not given `limit` samples yet. `taken` goes on from call to call. Two passes without branches (a maximum, then its
// first place), so that the compiler computes several data sets at once.
template <typename Which>
void blend(const View<double>& weights, std::int64_t* taken, const View<std::int64_t>& limits, std::int64_t count,
           Which* which, std::int64_t* sample) {
    constexpr double never = -std::numeric_limits<double>::infinity();
    constexpr std::int64_t lanes = 4;
    const std::int64_t sets = weights.size(), padded = (sets + lanes - 1) / lanes * lanes;
    std::vector<double> share(padded, 0.0), used(padded, -never), behind(padded);  // padding is never furthest behind
    std::int64_t given = 0;
    for (std::int64_t d = 0; d < sets; ++d) {
        require(taken[d] >= 0, "taken must not be negative");
        require(weights[d] >= 0 && weights[d] <= std::numeric_limits<double>::max(),
                "weights must be finite and not negative");
        share[d] = weights[d];
        if (taken[d] < limits[d]) used[d] = static_cast<double>(taken[d]);
        given += taken[d];
    }
    for (std::int64_t at = 0; at < count; ++at, ++given) {
        const double total = static_cast<double>(std::max<std::int64_t>(given, 1));
        double most = never;
#pragma omp simd reduction(max : most)
        for (std::int64_t d = 0; d < padded; ++d) {
            behind[d] = share[d] * total - used[d];
            most = std::max(most, behind[d]);
        }
        if (most == never)
            throw std::invalid_argument("all data sets are used up after " + std::to_string(given) + " samples");
        std::int64_t best = 0;
        while (behind[best] != most) ++best;
        which[at] = static_cast<Which>(best);
        sample[at] = taken[best]++;
        used[best] = taken[best] < limits[best] ? used[best] + 1.0 : -never;
    }
}

}  // namespace megascratch
