// Shuffles whose every swap is a cache miss, made fast by knowing the next few hundred swaps ahead of time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "arrays.h"

namespace megascratch {

constexpr std::int64_t kAhead = 256;  // swaps whose cache lines are on their way

// Fisher-Yates from the last place down to place 1. draw(place, count, out) gives the partners of `count` places,
// `place` and those below it, each from [0, its place].
template <typename T, typename Draw>
void shuffle(T* items, std::int64_t count, Draw draw) {
    std::array<std::array<std::int64_t, kAhead>, 2> partners;
    const auto look = [&](std::int64_t place, std::array<std::int64_t, kAhead>& out) {
        const std::int64_t many = std::min(kAhead, std::max<std::int64_t>(place, 0));
        draw(place, many, out.data());
        for (std::int64_t at = 0; at < many; ++at) __builtin_prefetch(items + out[at], 1);
    };
    int now = 0;
    look(count - 1, partners[now]);
    for (std::int64_t top = count - 1; top > 0; top -= kAhead, now ^= 1) {
        look(top - kAhead, partners[now ^ 1]);
        const std::int64_t many = std::min(kAhead, top);
        for (std::int64_t at = 0; at < many; ++at) std::swap(items[top - at], items[partners[now][at]]);
    }
}

constexpr std::uint64_t kGamma = 0x9E3779B97F4A7C15ULL;

// SplitMix64's output function (Steele, Lea, Flood 2014).
inline std::uint64_t mix64(std::uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
    return value ^ (value >> 31);
}

// A number in [0, bound): the high half of the 128-bit product.
inline std::int64_t below(std::uint64_t random, std::int64_t bound) {
    return static_cast<std::int64_t>((static_cast<unsigned __int128>(random) * static_cast<std::uint64_t>(bound)) >> 64);
}

// The partners of one key: a counter-based draw per place.
struct KeyedDraws {
    std::uint64_t key;

    void operator()(std::int64_t place, std::int64_t count, std::int64_t* out) const {
        for (std::int64_t at = 0; at < count; ++at, --place)
            out[at] = below(mix64(key + static_cast<std::uint64_t>(place) * kGamma), place + 1);
    }
};

// MT19937 (Matsumoto, Nishimura 1998) from NumPy's state: 624 words of key, then the next one to be used (624: none).
class Mt19937 {
  public:
    static constexpr std::int64_t kWords = 624;

    explicit Mt19937(std::uint32_t* state) : key_(state), next_(state[kWords]) {
        require(next_ <= kWords, "the generator's position " + std::to_string(next_) + " is above 624");
        temper();
    }

    // The partners that numpy.random.RandomState.shuffle draws: masked rejection, 32 bits where they suffice.
    void partners(std::int64_t place, std::int64_t count, std::int64_t* out) {
        while (count > 0) {
            const std::uint64_t top = static_cast<std::uint64_t>(place);
            const std::uint64_t mask = ~std::uint64_t{0} >> __builtin_clzll(top);
            const std::int64_t run = std::min(count, place - static_cast<std::int64_t>(mask >> 1));
            if (top > 0xFFFFFFFFULL)
                wide(top, mask, run, out);
            else
                narrow(static_cast<std::uint32_t>(top), static_cast<std::uint32_t>(mask), run, out);
            place -= run;
            count -= run;
            out += run;
        }
    }

    void save() const { key_[kWords] = static_cast<std::uint32_t>(next_); }

  private:
    // `run` numbers, the first <= top, the next <= top - 1 ...; no branch depends on whether a number is rejected.
    void narrow(std::uint32_t top, std::uint32_t mask, std::int64_t run, std::int64_t* out) {
        std::int64_t found = 0;
        while (found < run) {
            if (next_ == kWords) refill();
            while (next_ < kWords && found < run) {
                const std::uint32_t value = words_[next_++] & mask;
                out[found] = value;
                found += value <= top - static_cast<std::uint32_t>(found);
            }
        }
    }

    void wide(std::uint64_t top, std::uint64_t mask, std::int64_t run, std::int64_t* out) {
        for (std::int64_t found = 0; found < run;) {
            const std::uint64_t high = word();
            const std::uint64_t value = (high << 32 | word()) & mask;
            out[found] = static_cast<std::int64_t>(value);
            found += value <= top - static_cast<std::uint64_t>(found);
        }
    }

    std::uint32_t word() {
        if (next_ == kWords) refill();
        return words_[next_++];
    }

    static std::uint32_t twist(std::uint32_t high, std::uint32_t low) {
        const std::uint32_t both = (high & 0x80000000U) | (low & 0x7FFFFFFFU);
        return (both >> 1) ^ (0x9908B0DFU & (0U - (low & 1U)));
    }

    void refill() {
        constexpr std::int64_t far = 397, rest = kWords - far;
        for (std::int64_t at = 0; at < rest; ++at) key_[at] = key_[at + far] ^ twist(key_[at], key_[at + 1]);
        for (std::int64_t at = rest; at < kWords - 1; ++at) key_[at] = key_[at - rest] ^ twist(key_[at], key_[at + 1]);
        key_[kWords - 1] = key_[far - 1] ^ twist(key_[kWords - 1], key_[0]);
        next_ = 0;
        temper();
    }

    void temper() {
        for (std::int64_t at = 0; at < kWords; ++at) {
            std::uint32_t word = key_[at];
            word ^= word >> 11;
            word ^= (word << 7) & 0x9D2C5680U;
            word ^= (word << 15) & 0xEFC60000U;
            words_[at] = word ^ (word >> 18);
        }
    }

    std::uint32_t* key_;
    std::int64_t next_;
    std::array<std::uint32_t, kWords> words_;
};

}  // namespace megascratch
