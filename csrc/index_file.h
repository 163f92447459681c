// Whether an .idx file keeps every law of its format; data/tokens/idx_format.py describes it and puts broken laws into words.
#pragma once

#include <cstdint>
#include <cstring>

#include "arrays.h"

namespace megascratch {

inline std::int64_t token_width(int code) {  // bytes; 0: no integer type
    switch (code) {
        case 1: case 2: return 1;
        case 3: case 8: return 2;
        case 4: return 4;
        case 5: return 8;
        default: return 0;
    }
}

struct IndexArrays {
    std::int64_t width;
    View<std::int32_t> lengths;
    View<std::int64_t> pointers, documents;
};

inline bool sound_documents(const IndexArrays& index) {
    const View<std::int64_t>& documents = index.documents;
    if (documents[0] != 0 || documents[documents.size() - 1] != index.lengths.size()) return false;
    for (std::int64_t at = 1; at < documents.size(); ++at)
        if (documents[at] < documents[at - 1]) return false;
    return true;
}

inline bool sound_sequences(const IndexArrays& index, std::int64_t bin_bytes) {
    std::int64_t end = 0;
    for (std::int64_t at = 0; at < index.lengths.size(); ++at) {
        const std::int64_t length = index.lengths[at], pointer = index.pointers[at];
        if (length < 0 || pointer < end || pointer > bin_bytes || pointer % index.width != 0) return false;
        if (length > (bin_bytes - pointer) / index.width) return false;
        end = pointer + length * index.width;
    }
    return true;
}

inline bool sound_index(const char* raw, std::int64_t size, std::int64_t bin_bytes) {
    constexpr std::int64_t header = 34;
    if (size < header || std::memcmp(raw, "MMIDIDX\0\0", 9) != 0) return false;
    const View<std::uint64_t> version(raw + 9, 1), counts(raw + 18, 2);
    const std::int64_t width = token_width(static_cast<unsigned char>(raw[17]));
    const auto limit = static_cast<std::uint64_t>(size);
    if (version[0] != 1 || width == 0 || counts[0] > limit || counts[1] < 1 || counts[1] > limit) return false;
    const auto sequences = static_cast<std::int64_t>(counts[0]), entries = static_cast<std::int64_t>(counts[1]);
    if (size - header != 12 * sequences + 8 * entries) return false;
    const char* lengths = raw + header;
    const IndexArrays index{width, {lengths, sequences}, {lengths + 4 * sequences, sequences},
                            {lengths + 12 * sequences, entries}};
    return sound_documents(index) && sound_sequences(index, bin_bytes);
}

}  // namespace megascratch
