// Which data set gives the next sample: the one furthest behind its share.
//
// The rule is a chain, one sample after the other, but its state is small: how many samples each set has given. So four
// stretches run side by side, three of them from a state that is guessed a little earlier. A stretch counts if the one
// before it ends in the very state that this one began in, for equal states have equal futures; else it is thrown away.
// What is kept is the chain's own result, number for number.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "arrays.h"
#include "blend_lanes.h"

namespace megascratch {

// A blend on its way: what each set has given so far.
class Blend {
  public:
    // `taken` [sets] is read, and written as the blend goes on.
    Blend(const View<double>& weights, std::int64_t* taken, const View<std::int64_t>& limits)
        : sets_(weights.size()),
          share_(sets_, 0.0),
          used_(share_.size(), kNever),
          taken_(taken),
          limits_(limits) {
        require(sets_ <= std::numeric_limits<std::int32_t>::max(), "there are more than 2^31 - 1 data sets");
        for (std::int64_t d = 0; d < sets_; ++d) {
            require(taken[d] >= 0 && taken[d] <= std::int64_t{1} << 48, "taken must be from 0 to 2^48");
            require(weights[d] >= 0 && weights[d] <= 1e9, "weights must be from 0 to 1e9");
            share_[d] = weights[d];
            if (taken[d] < limits[d]) used_[d] = static_cast<double>(taken[d]);
            given_ += taken[d];
        }
    }

    // The next `count` samples.
    void choose(std::int64_t count, std::int32_t* which, std::int64_t* sample) {
        require(sets_ > 0 || count == 0, "there is no data set");
        const bool exact = given_ <= (std::int64_t{1} << 52) - count;  // a double counts so far
        std::int64_t at = 0, warm_up = kWarmUp * (sets_ + 16);
        for (int failures = 0; has_lanes() && exact && failures < kFailures;) {
            const std::int64_t length = std::min((count - at) / kLanes, kLongest);
            if (length < 2 * warm_up) break;
            const std::int64_t kept = side_by_side(length, warm_up, which + at, sample + at);
            at += kept * length;
            if (kept < kLanes) {
                ++failures;
                warm_up *= 4;
            }
        }
        in_turn(count - at, which + at, sample + at);
    }

  private:
    static constexpr double kNever = std::numeric_limits<double>::infinity();
    static constexpr std::int64_t kWarmUp = 4, kLongest = 16000;
    static constexpr int kFailures = 3;

    // The largest weight x max(s, 1) - taken, ties to the lowest.
    void in_turn(std::int64_t count, std::int32_t* which, std::int64_t* sample) {
        for (std::int64_t at = 0; at < count; ++at, ++given_) {
            const double total = static_cast<double>(std::max<std::int64_t>(given_, 1));
            const std::int64_t best = furthest(total);
            if (used_[best] == kNever)
                throw std::invalid_argument("all data sets are used up after " + std::to_string(given_) + " samples");
            which[at] = static_cast<std::int32_t>(best);
            sample[at] = taken_[best]++;
            used_[best] = taken_[best] < limits_[best] ? used_[best] + 1.0 : kNever;
        }
    }

    std::int64_t furthest(double total) const {
        std::int64_t best = 0;
        double most = share_[0] * total - used_[0];
        for (std::int64_t d = 1; d < sets_; ++d) {
            const double behind = share_[d] * total - used_[d];
            if (__builtin_expect(behind > most, 0)) {  // few sets repeat themselves: a branch is well predicted
                most = behind;
                best = d;
            }
        }
        return best;
    }

    // kLanes stretches of `length` samples; gives how many of them, from the first on, belong to the blend.
    std::int64_t side_by_side(std::int64_t length, std::int64_t warm_up, std::int32_t* which, std::int64_t* sample) {
        Stretches now{Aligned(sets_ * kLanes, 0.0), {}};
        for (std::int64_t lane = 1; lane < kLanes; ++lane)
            place(now, lane, given_ + lane * length - warm_up, guess(given_ + lane * length - warm_up));
        run(share_, sets_, now, warm_up, length, which, sample);
        place(now, 0, given_, used_);  // its state is known
        const Stretches begin = now;
        run(share_, sets_, now, length, length, which, sample);
        std::int64_t kept = 0;
        while (kept < kLanes && (kept == 0 || meet(now, begin, kept)) && keeps_limits(now, kept)) ++kept;
        if (kept == 0) return 0;
        given_ += kept * length;
        for (std::int64_t d = 0; d < sets_; ++d) {
            if (used_[d] == kNever) continue;
            used_[d] = now.used[d * kLanes + kept - 1];
            taken_[d] = static_cast<std::int64_t>(used_[d]);
            if (taken_[d] >= limits_[d]) used_[d] = kNever;
        }
        return kept;
    }

    void place(Stretches& now, std::int64_t lane, std::int64_t given, const Aligned& used) const {
        now.given[lane] = static_cast<double>(given);
        for (std::int64_t d = 0; d < sets_; ++d) now.used[d * kLanes + lane] = used[d];
    }

    // Whether the stretch before `lane` ends as this one began.
    bool meet(const Stretches& now, const Stretches& begin, std::int64_t lane) const {
        for (std::int64_t at = lane; at < sets_ * kLanes; at += kLanes)
            if (now.used[at - 1] != begin.used[at]) return false;
        return true;
    }

    // Lanes know no limits: a stretch belongs to the blend if no set gives more than it may, and some set may give.
    bool keeps_limits(const Stretches& now, std::int64_t lane) const {
        bool any = false;
        for (std::int64_t d = 0; d < sets_; ++d) {
            const double used = now.used[d * kLanes + lane];
            if (used == kNever) continue;
            if (used > static_cast<double>(limits_[d])) return false;
            any = true;
        }
        return any;
    }

    // What each set will have given after `total` samples, most likely: all equally far behind, rounded to that sum.
    Aligned guess(std::int64_t total) const {
        double shares = 0.0, left = static_cast<double>(total);
        std::vector<std::int64_t> open;
        for (std::int64_t d = 0; d < sets_; ++d) {
            if (used_[d] == kNever) {
                left -= static_cast<double>(taken_[d]);
            } else {
                shares += share_[d];
                open.push_back(d);
            }
        }
        const auto many = static_cast<double>(std::max<std::size_t>(open.size(), 1));
        const double behind = (shares * static_cast<double>(total) - left) / many;
        Aligned found = used_, part(sets_, 0.0);
        for (const std::int64_t d : open) {
            const double exact = std::max(share_[d] * static_cast<double>(total) - behind, used_[d]);
            found[d] = std::floor(exact);
            part[d] = exact - found[d];
            left -= found[d];
        }
        std::stable_sort(open.begin(), open.end(), [&](auto one, auto other) { return part[one] > part[other]; });
        for (std::size_t at = 0; at < open.size() && static_cast<double>(at) < left; ++at) found[open[at]] += 1.0;
        return found;
    }

    std::int64_t sets_;
    // A set that may give no more has given infinitely many samples: it never wins.
    Aligned share_, used_;
    std::int64_t* taken_;
    View<std::int64_t> limits_;
    std::int64_t given_ = 0;
};

// Sample s goes to the data set with the largest weight x max(s, 1) - taken, ties to the lowest, among those that have
// not given `limit` samples yet. `taken` goes on from call to call.
inline void blend(const View<double>& weights, std::int64_t* taken, const View<std::int64_t>& limits,
                  std::int64_t count, std::int32_t* which, std::int64_t* sample) {
    Blend(weights, taken, limits).choose(count, which, sample);
}

}  // namespace megascratch
