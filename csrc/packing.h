// Documents packed whole into samples: best fit, longest first (arXiv 2404.10830).
#pragma once

#include <cstdint>
#include <vector>

#include "arrays.h"

namespace megascratch {

// Samples by the room they have left; of those with equal room, the one used last.
class Rooms {
  public:
    static constexpr std::int64_t kNone = -1;

    explicit Rooms(std::int64_t most)
        : words_(static_cast<std::size_t>(most / 64 + 1), 0), newest_(static_cast<std::size_t>(most + 1), kNone) {}

    void add(std::int64_t sample, std::int64_t room) {
        if (static_cast<std::size_t>(sample) == older_.size()) older_.push_back(kNone);
        older_[sample] = newest_[room];
        newest_[room] = sample;
        words_[room / 64] |= std::uint64_t{1} << (room % 64);
    }

    // The least room that is at least `size`, or kNone.
    std::int64_t tightest(std::int64_t size) const {
        std::uint64_t word = words_[size / 64] & (~std::uint64_t{0} << (size % 64));
        for (std::size_t at = size / 64;; word = words_[at]) {
            if (word) return static_cast<std::int64_t>(at) * 64 + __builtin_ctzll(word);
            if (++at == words_.size()) return kNone;
        }
    }

    std::int64_t take(std::int64_t room) {
        const std::int64_t sample = newest_[room];
        newest_[room] = older_[sample];
        if (newest_[room] == kNone) words_[room / 64] &= ~(std::uint64_t{1} << (room % 64));
        return sample;
    }

  private:
    std::vector<std::uint64_t> words_;   // bit r: there is a sample with room r
    std::vector<std::int64_t> newest_;   // [room]
    std::vector<std::int64_t> older_;    // [sample]: the next one with as much room
};

struct Packed {
    std::vector<std::int64_t> pieces;  // [pieces, 2]: sequence, offset of its first token
    std::vector<std::int64_t> ends;    // [samples]: pieces up to the end of each sample
};

// The tokens of a sequence behind its whole samples: where they begin, and how many. A sample has seq_length + 1
// tokens, its last is the first of the next; so one token alone is left only of a sequence of one token.
struct Rest {
    std::int64_t whole, offset, count;

    Rest(std::int64_t length, std::int64_t seq_length)
        : whole(length > 0 ? (length - 1) / seq_length : 0), offset(whole * seq_length), count(length - offset) {
        if (whole > 0 && count == 1) count = 0;
    }
};

// The sequences that have a rest, those with the longest first (a counting sort), else in order.
inline std::vector<std::int64_t> longest_first(const View<std::int32_t>& lengths, std::int64_t first,
                                               std::int64_t stop, std::int64_t seq_length) {
    std::vector<std::int64_t> begins(static_cast<std::size_t>(seq_length) + 1, 0);  // of each rest, longest first
    for (std::int64_t sequence = first; sequence < stop; ++sequence) {
        const std::int64_t count = Rest(lengths[sequence], seq_length).count;
        if (count > 0) ++begins[seq_length - count + 1];
    }
    for (std::int64_t at = 1; at <= seq_length; ++at) begins[at] += begins[at - 1];
    std::vector<std::int64_t> order(begins[seq_length]);
    for (std::int64_t sequence = first; sequence < stop; ++sequence) {
        const std::int64_t count = Rest(lengths[sequence], seq_length).count;
        if (count > 0) order[begins[seq_length - count]++] = sequence;
    }
    return order;
}

// Appends samples made of the rests in their order: each goes into the fullest sample that has room, else a new one.
inline void pack_rests(const View<std::int32_t>& lengths, const std::vector<std::int64_t>& rests,
                       std::int64_t seq_length, Packed& result) {
    Rooms rooms(seq_length + 1);
    std::vector<std::int64_t> sample_of(rests.size()), sizes;
    for (std::size_t at = 0; at < rests.size(); ++at) {
        const std::int64_t count = Rest(lengths[rests[at]], seq_length).count, room = rooms.tightest(count);
        const bool full = room == Rooms::kNone;
        sample_of[at] = full ? static_cast<std::int64_t>(sizes.size()) : rooms.take(room);
        if (full) sizes.push_back(0);
        ++sizes[sample_of[at]];
        rooms.add(sample_of[at], (full ? seq_length + 1 : room) - count);
    }
    std::int64_t end = static_cast<std::int64_t>(result.pieces.size()) / 2;
    std::vector<std::int64_t> next;  // where each sample's next piece goes
    for (const std::int64_t size : sizes) {
        next.push_back(end);
        result.ends.push_back(end += size);
    }
    result.pieces.resize(2 * static_cast<std::size_t>(end));
    for (std::size_t at = 0; at < rests.size(); ++at) {
        std::int64_t* piece = &result.pieces[2 * next[sample_of[at]]++];
        piece[0] = rests[at];
        piece[1] = Rest(lengths[rests[at]], seq_length).offset;
    }
}

// Sequences [first, stop) as samples of at most seq_length + 1 tokens: the whole samples of long sequences, in order,
// then the rests, packed.
inline Packed best_fit(const View<std::int32_t>& lengths, std::int64_t first, std::int64_t stop,
                       std::int64_t seq_length) {
    require(seq_length >= 1 && seq_length < std::int64_t{1} << 31,
            "seq_length " + std::to_string(seq_length) + " must be from 1 to 2^31 - 1");
    require(0 <= first && first <= stop && stop <= lengths.size(),
            "sequences " + std::to_string(first) + " to " + std::to_string(stop) + " of " +
                std::to_string(lengths.size()));
    Packed result;
    for (std::int64_t sequence = first; sequence < stop; ++sequence) {
        require(lengths[sequence] >= 0, "a sequence has a negative length");
        for (std::int64_t part = 0; part < Rest(lengths[sequence], seq_length).whole; ++part) {
            result.pieces.insert(result.pieces.end(), {sequence, part * seq_length});
            result.ends.push_back(static_cast<std::int64_t>(result.pieces.size()) / 2);
        }
    }
    pack_rests(lengths, longest_first(lengths, first, stop, seq_length), seq_length, result);
    return result;
}

}  // namespace megascratch
