// The module megascratch.data.tokens._indices: functions of NumPy arrays, and TokenFile, which keeps the arrays of a
// corpus so that they are checked once and not at every read.
// Each function has a twin in data/tokens/indices_python.py that must give the same numbers; tests bind the two.
// All integers are 64 bits wide; every index is checked before it is used; the GIL is free while they run.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "blend.h"
#include "index_file.h"
#include "packing.h"
#include "samples.h"
#include "shuffle.h"

namespace py = pybind11;
using namespace megascratch;

namespace {

template <typename T>
using Converted = py::array_t<T, py::array::c_style | py::array::forcecast>;  // for what is small enough to copy

// Larger arrays are taken as they are: there may be no room for them twice.
template <typename T>
bool holds(const py::array& array) {
    return py::isinstance<py::array_t<T>>(array);
}

template <typename T>
View<T> view(const py::array& array, const char* name, py::ssize_t dims = 1) {
    require(array.ndim() == dims, std::string(name) + (dims == 1 ? " must have one dimension" : " must have two dimensions"));
    if (!(array.flags() & py::array::c_style) || !holds<T>(array))
        throw py::type_error(std::string(name) + " must be contiguous " + std::string(py::str(py::dtype::of<T>())));
    return View<T>(array.data(), array.size());
}

// Calls f with the array as 32-bit or as 64-bit integers, whatever it holds.
template <typename F>
auto with_integers(const py::array& array, const char* name, F f) {
    return holds<std::int32_t>(array) ? f(view<std::int32_t>(array, name)) : f(view<std::int64_t>(array, name));
}

template <typename T>
py::array_t<T> array_of(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::array_t<std::int64_t> permutation(std::int64_t count, std::uint64_t key) {
    require(count >= 0, "count " + std::to_string(count) + " is negative");
    py::array_t<std::int64_t> result(count);
    std::int64_t* order = result.mutable_data();
    py::gil_scoped_release free;
    for (std::int64_t place = 0; place < count; ++place) order[place] = place;
    shuffle(order, count, KeyedDraws{key});
    return result;
}

template <typename T>
void shuffle_in_place(py::array& items, Mt19937& random) {
    T* data = static_cast<T*>(items.mutable_data());
    const std::int64_t count = items.size();
    py::gil_scoped_release free;
    shuffle(data, count, [&](auto place, auto many, auto* out) { random.partners(place, many, out); });
}

Mt19937 generator(py::array& state) {
    require(view<std::uint32_t>(state, "state").size() == Mt19937::kWords + 1, "state must have 625 words");
    return Mt19937(static_cast<std::uint32_t*>(state.mutable_data()));
}

void legacy_shuffle(py::array items, py::array state) {
    Mt19937 random = generator(state);
    require(items.ndim() == 1 && (items.flags() & py::array::c_style), "items must be one contiguous run");
    if (items.itemsize() == 4)
        shuffle_in_place<std::uint32_t>(items, random);
    else if (items.itemsize() == 8)
        shuffle_in_place<std::uint64_t>(items, random);
    else
        throw py::type_error("items must have 4 or 8 bytes each");
    random.save();
}

py::array_t<std::int64_t> legacy_draws(std::int64_t place, std::int64_t count, py::array state) {
    require(0 <= count && count <= place, "count must be from 0 to place " + std::to_string(place));
    Mt19937 random = generator(state);
    py::array_t<std::int64_t> result(count);
    random.partners(place, count, result.mutable_data());
    random.save();
    return result;
}

py::array_t<std::int64_t> sample_index(const py::array& lengths, const py::array& order, std::int64_t seq_length,
                                       bool keep_partial, std::int64_t start) {
    require(seq_length >= 1, "seq_length " + std::to_string(seq_length) + " must be at least 1");
    require(start >= 0, "start " + std::to_string(start) + " is negative");
    return with_integers(lengths, "lengths", [&](auto sizes) {
        return with_integers(order, "order", [&](auto sequences) {
            std::int64_t tokens = 0, samples = 0;
            {
                py::gil_scoped_release free;
                tokens = count_tokens(sizes, sequences);
                samples = count_samples(tokens, seq_length, keep_partial, start);
            }
            py::array_t<std::int64_t> result({samples + 1, std::int64_t{2}});
            std::int64_t* rows = result.mutable_data();
            py::gil_scoped_release free;
            cut(sizes, sequences, tokens, seq_length, start, samples, rows);
            return result;
        });
    });
}

template <typename Row>
py::array walk_rows(const py::array& lengths, const py::array& order, std::int64_t seq_length, Place from,
                    std::int64_t rows) {
    require(rows >= 0, "rows " + std::to_string(rows) + " is negative");
    const auto sizes = view<std::int32_t>(lengths, "lengths");
    py::array_t<Row> result({rows, std::int64_t{2}});
    Row* out = result.mutable_data();
    with_integers(order, "order", [&](auto sequences) {
        py::gil_scoped_release free;
        walk(sizes, sequences, seq_length, from, rows, out);
    });
    return result;
}

py::array sample_rows(const py::array& lengths, const py::array& order, std::int64_t seq_length, std::int64_t place,
                      std::int64_t offset, std::int64_t rows, bool wide) {
    const Place from{place, offset};
    return wide ? walk_rows<std::int64_t>(lengths, order, seq_length, from, rows)
                : walk_rows<std::int32_t>(lengths, order, seq_length, from, rows);
}

// Calls f with a zero of the token type that has this dtype code in an .idx file.
template <typename F>
void with_token(int code, F f) {
    switch (code) {
        case 1: return f(std::uint8_t{});
        case 2: return f(std::int8_t{});
        case 3: return f(std::int16_t{});
        case 4: return f(std::int32_t{});
        case 5: return f(std::int64_t{});
        case 8: return f(std::uint16_t{});
        default: throw std::invalid_argument("dtype code " + std::to_string(code) + " is no integer type");
    }
}

// A mapped .bin and where its sequences lie; the arrays live as long as it does.
struct TokenFile {
    TokenFile(py::array bytes, int code, py::array lengths, py::array pointers, py::array checked, std::int64_t limit)
        : bytes(std::move(bytes)), lengths(std::move(lengths)), pointers(std::move(pointers)),
          checked(std::move(checked)), code(code), limit(limit),
          tokens{static_cast<const char*>(this->bytes.data()), view<std::uint8_t>(this->bytes, "bytes").size(),
                 view<std::int32_t>(this->lengths, "lengths"), view<std::int64_t>(this->pointers, "pointers")},
          marks(view<std::uint8_t>(this->checked, "checked")) {}

    py::array bytes, lengths, pointers, checked;
    int code;            // of the ids' type
    std::int64_t limit;  // of ids; below 0: none
    Tokens tokens;
    View<std::uint8_t> marks;
};

constexpr std::int64_t kBlockBytes = 1 << 15;  // digests.py's BLOCK_BYTES

// None where a block of the pieces was not compared with its digest yet.
py::object gather(const std::vector<Piece>& pieces, const TokenFile& source) {
    const Tokens& file = source.tokens;
    std::int64_t total = 0;
    for (const Piece& piece : pieces) {
        require(piece.count >= 0 && piece.count <= file.size, "a piece is longer than its file");
        total += piece.count;
    }
    py::array_t<std::int64_t> result(total);
    std::int64_t* out = result.mutable_data();
    bool marked = true, inside = true;
    {
        py::gil_scoped_release free;
        with_token(source.code, [&](auto token) {
            for (const Piece& piece : pieces) {
                inside &= copy_tokens<decltype(token)>(file, piece.sequence, piece.offset, piece.count,
                                                       source.limit - 1, out);
                out += piece.count;
                marked = marked && all_marked(file, piece, sizeof(token), source.marks, kBlockBytes);
            }
        });
    }
    if (!marked) return py::none();
    if (!inside && source.limit >= 0) throw std::overflow_error("an id lies outside the vocabulary");
    return std::move(result);
}

py::array_t<std::int64_t> pieces_of(const py::array& lengths, const py::array& order, std::int64_t place,
                                    std::int64_t offset, std::int64_t last_place, std::int64_t last_offset) {
    const auto sizes = view<std::int32_t>(lengths, "lengths");
    std::vector<std::int64_t> rows;
    with_integers(order, "order", [&](auto sequences) {
        py::gil_scoped_release free;
        pieces_between(sizes, sequences, Place{place, offset}, Place{last_place, last_offset}, [&](const Piece& piece) {
            rows.insert(rows.end(), {piece.sequence, piece.offset, piece.count});
        });
    });
    return array_of(rows).reshape({py::ssize_t{-1}, py::ssize_t{3}});
}

py::object read_pieces(const TokenFile& file, const py::array& pieces) {
    const auto rows = view<std::int64_t>(pieces, "pieces", 2);
    require(pieces.shape(1) == 3, "pieces must have 3 columns: sequence, offset, count");
    std::vector<Piece> wanted;
    for (std::int64_t at = 0; at < rows.size(); at += 3) wanted.push_back({rows[at], rows[at + 1], rows[at + 2]});
    return gather(wanted, file);
}

std::pair<py::array_t<std::int64_t>, py::array_t<std::int64_t>> best_fit_pieces(const py::array& lengths,
                                                                                std::int64_t first, std::int64_t stop,
                                                                                std::int64_t seq_length) {
    const auto sizes = view<std::int32_t>(lengths, "lengths");
    Packed packed;
    {
        py::gil_scoped_release free;
        packed = best_fit(sizes, first, stop, seq_length);
    }
    return {array_of(packed.pieces).reshape({py::ssize_t{-1}, py::ssize_t{2}}), array_of(packed.ends)};
}

std::pair<py::array_t<std::int32_t>, py::array_t<std::int64_t>> blend_samples(const Converted<double>& weights,
                                                                              const Converted<std::int64_t>& taken,
                                                                              const Converted<std::int64_t>& limits,
                                                                              std::int64_t count) {
    const auto share = view<double>(weights, "weights");
    const auto limit = view<std::int64_t>(limits, "limits");
    require(taken.size() == share.size() && limit.size() == share.size(),
            "weights, taken and limits must have the same length");
    require(count >= 0, "count " + std::to_string(count) + " is negative");
    std::vector<std::int64_t> used(taken.data(), taken.data() + taken.size());
    py::array_t<std::int32_t> which(count);
    py::array_t<std::int64_t> sample(count);
    std::int32_t* to_which = which.mutable_data();
    std::int64_t* to_sample = sample.mutable_data();
    py::gil_scoped_release free;
    blend(share, used.data(), limit, count, to_which, to_sample);
    return {which, sample};
}

bool sound(const py::buffer& raw, std::int64_t bin_bytes) {
    const py::buffer_info bytes = raw.request();
    py::gil_scoped_release free;
    return sound_index(static_cast<const char*>(bytes.ptr), bytes.size * bytes.itemsize, bin_bytes);
}

}  // namespace

PYBIND11_MODULE(_indices, module) {
    using py::arg;
    module.doc() = "Orders of documents and samples, and the ids of samples.";
    module.def("sound_index", &sound, arg("raw"), arg("bin_bytes"));
    module.def("permutation", &permutation, arg("count"), arg("key"));
    module.def("legacy_shuffle", &legacy_shuffle, arg("items"), arg("state"));
    module.def("legacy_draws", &legacy_draws, arg("place"), arg("count"), arg("state"));
    module.def("sample_index", &sample_index, arg("lengths"), arg("order"), arg("seq_length"), arg("keep_partial"),
               arg("start") = 0);
    module.def("sample_rows", &sample_rows, arg("lengths"), arg("order"), arg("seq_length"), arg("place"),
               arg("offset"), arg("rows"), arg("wide"));
    module.def("pieces_between", &pieces_of, arg("lengths"), arg("order"), arg("place"), arg("offset"),
               arg("last_place"), arg("last_offset"));
    py::class_<TokenFile>(module, "TokenFile")
        .def(py::init<py::array, int, py::array, py::array, py::array, std::int64_t>(), arg("bytes"), arg("code"),
             arg("lengths"), arg("pointers"), arg("checked"), arg("limit"))
        .def_readonly("bytes", &TokenFile::bytes)
        .def_readonly("code", &TokenFile::code)
        .def_readonly("lengths", &TokenFile::lengths)
        .def_readonly("pointers", &TokenFile::pointers)
        .def_readonly("checked", &TokenFile::checked)
        .def_readonly("limit", &TokenFile::limit);
    module.def("read_pieces", &read_pieces, arg("file"), arg("pieces"));
    module.def("best_fit", &best_fit_pieces, arg("lengths"), arg("first"), arg("stop"), arg("seq_length"));
    module.def("blend", &blend_samples, arg("weights"), arg("taken"), arg("limits"), arg("count"));
}
