// Where samples begin in sequences laid end to end, and the tokens of a sample gathered from the mapped file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "arrays.h"

namespace megascratch {

struct Place {
    std::int64_t place;   // in the order of sequences
    std::int64_t offset;  // of a token inside that sequence
};

// Tokens of all sequences in order, with every index, length and sum checked.
template <typename Length, typename Order>
std::int64_t count_tokens(const View<Length>& lengths, const View<Order>& order) {
    std::int64_t total = 0;
    for (std::int64_t place = 0; place < order.size(); ++place) {
        const std::int64_t sequence = order[place];
        if (sequence < 0 || sequence >= lengths.size())
            throw std::out_of_range("order[" + std::to_string(place) + "] is sequence " + std::to_string(sequence) +
                                    " of " + std::to_string(lengths.size()));
        const std::int64_t length = lengths[sequence];
        require(length >= 0, "a sequence has a negative length");
        if (length > std::numeric_limits<std::int64_t>::max() - total)
            throw std::overflow_error("the lengths add up to more than 64 bits");
        total += length;
    }
    return total;
}

// Samples of seq_length + 1 tokens from token `start` on, each sample's last token being the first of the next.
inline std::int64_t count_samples(std::int64_t tokens, std::int64_t seq_length, bool keep_partial,
                                  std::int64_t start) {
    const std::int64_t steps = start < tokens ? tokens - 1 - start : 0;
    return steps / seq_length + (keep_partial && steps % seq_length != 0 ? 1 : 0);
}

// Rows (place in order, offset) of token start, start + L, start + 2 L ... of the sequences laid end to end: sample j
// runs from row j to row j + 1, both included; a shorter last sample ends with the last token. Out is int64
// [samples + 1, 2].
template <typename Length, typename Order>
void cut(const View<Length>& lengths, const View<Order>& order, std::int64_t tokens, std::int64_t seq_length,
         std::int64_t start, std::int64_t samples, std::int64_t* out) {
    out[0] = out[1] = 0;
    if (samples == 0) return;
    std::int64_t place = 0, begin = 0;  // begin: tokens before this place
    for (std::int64_t sample = 0; sample <= samples; ++sample) {
        const std::int64_t token = start + std::min(tokens - 1 - start, sample * seq_length);
        while (begin + lengths[order[place]] <= token) begin += lengths[order[place++]];
        *out++ = place;
        *out++ = token - begin;
    }
}

// Rows (place, offset) of the tokens seq_length, 2 seq_length ... behind `from`: `rows` of them, into out [rows, 2].
// Lengths are read in random order, so they are asked for ahead of time.
template <typename Order, typename Row>
void walk(const View<std::int32_t>& lengths, const View<Order>& order, std::int64_t seq_length, Place from,
          std::int64_t rows, Row* out) {
    constexpr std::int64_t ahead = 48;
    require(seq_length >= 1 && seq_length <= std::int64_t{1} << 40,
            "seq_length " + std::to_string(seq_length) + " must be from 1 to 2^40");
    require(order.size() <= std::numeric_limits<Row>::max(), "32-bit rows cannot name so many places");
    require(from.place >= 0 && from.offset >= 0, "a walk begins at place 0, offset 0 or later");
    std::int64_t need = from.offset;  // tokens from the begin of this place to the next row
    for (std::int64_t place = from.place; rows > 0; ++place) {
        if (place >= order.size())
            throw std::out_of_range("the sequences end " + std::to_string(rows) + " rows too early");
        if (place + ahead < order.size()) {
            const auto soon = static_cast<std::int64_t>(order[place + ahead]);
            if (soon >= 0 && soon < lengths.size()) lengths.prefetch(soon);
        }
        const std::int64_t length = lengths.at(order[place], "sequence");
        require(length >= 0, "a sequence has a negative length");
        if (place == from.place) {
            require(from.offset <= length, "a walk begins behind the end of its sequence");
            need += seq_length;
        }
        for (; need < length && rows > 0; need += seq_length, --rows) {
            *out++ = static_cast<Row>(place);
            *out++ = static_cast<Row>(need);
        }
        need -= length;
    }
}

// The file of token ids and where each sequence lies in it, in bytes.
struct Tokens {
    const char* bytes;
    std::int64_t size;
    View<std::int32_t> lengths;
    View<std::int64_t> pointers;
};

// Tokens [offset, offset + count) of a sequence as 64-bit ids, each bound checked first. Gives whether all of them are
// from 0 to `last`: the top bit of id | (last - id) is set where one is not, without a branch in the loop.
template <typename Token>
bool copy_tokens(const Tokens& file, std::int64_t sequence, std::int64_t offset, std::int64_t count, std::int64_t last,
                 std::int64_t* out) {
    constexpr std::int64_t width = sizeof(Token);
    const std::int64_t length = file.lengths.at(sequence, "sequence"), pointer = file.pointers.at(sequence, "pointer");
    if (offset < 0 || count < 0 || offset > length || count > length - offset)
        throw std::out_of_range("tokens " + std::to_string(offset) + " to " + std::to_string(offset) + " + " +
                                std::to_string(count) + " of a sequence of " + std::to_string(length));
    if (pointer < 0 || pointer > file.size || (offset + count) > (file.size - pointer) / width)
        throw std::out_of_range("sequence " + std::to_string(sequence) + " lies outside the token file");
    const View<Token> ids(file.bytes + pointer + offset * width, count);
    using Signed = std::conditional_t<(sizeof(Token) < 4), std::int32_t, std::int64_t>;  // narrow ids, twice as fast
    using Bits = std::make_unsigned_t<Signed>;
    const auto most = static_cast<Bits>(std::min<std::int64_t>(last, std::numeric_limits<Signed>::max()));
    Bits outside = 0;
    for (std::int64_t at = 0; at < count; ++at) {
        const auto id = static_cast<Bits>(static_cast<Signed>(ids[at]));
        outside |= id | (most - id);
        out[at] = static_cast<Signed>(id);
    }
    return outside >> (8 * sizeof(Bits) - 1) == 0;
}

// One piece of a sample: some tokens of one sequence.
struct Piece {
    std::int64_t sequence, offset, count;
};

// Whether every block of `block_bytes` that holds a byte of the piece is marked; no marks: there is nothing to compare.
// The piece lies inside the file.
inline bool all_marked(const Tokens& file, const Piece& piece, std::int64_t width, const View<std::uint8_t>& marks,
                       std::int64_t block_bytes) {
    if (marks.size() == 0 || piece.count == 0) return true;
    const std::int64_t start = file.pointers[piece.sequence] + piece.offset * width;
    const std::int64_t last = (start + piece.count * width - 1) / block_bytes;
    for (std::int64_t block = start / block_bytes; block <= last; ++block)
        if (marks.at(block, "block") == 0) return false;
    return true;
}

// Calls take(piece) for each sequence from (first.place, first.offset) to (last.place, last.offset), both included.
template <typename Order, typename Take>
void pieces_between(const View<std::int32_t>& lengths, const View<Order>& order, Place first, Place last, Take take) {
    constexpr std::int64_t longest = std::numeric_limits<std::int32_t>::max();
    require(0 <= first.offset && first.offset <= longest && 0 <= last.offset && last.offset <= longest,
            "an offset lies in no sequence");
    for (std::int64_t place = first.place; place <= last.place; ++place) {
        const std::int64_t sequence = order.at(place, "order");
        const std::int64_t offset = place == first.place ? first.offset : 0;
        const std::int64_t stop = place == last.place ? last.offset + 1 : lengths.at(sequence, "sequence");
        take(Piece{sequence, offset, stop - offset});
    }
}

}  // namespace megascratch
