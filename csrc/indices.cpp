// Orders of documents and samples: NumPy arrays in, NumPy arrays out, no Python objects, no state.
// Each function has a twin in megascratch/data/reference.py that must give the same numbers; tests bind the two.
// All integers are 64 bits wide; every index is checked before it is used; the GIL is free while they run.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

namespace {

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

void require_flat(const py::array& array, const char* name) {
    if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one dimension");
}

// 0 ... count - 1 in an order that is a pure function of key: Fisher-Yates with one counter-based draw per place.
py::array_t<std::int64_t> permutation(std::int64_t count, std::uint64_t key) {
    if (count < 0) throw std::invalid_argument("count " + std::to_string(count) + " is negative");
    py::array_t<std::int64_t> result(count);
    std::int64_t* order = result.mutable_data();
    py::gil_scoped_release free;
    for (std::int64_t place = 0; place < count; ++place) order[place] = place;
    for (std::int64_t place = count - 1; place > 0; --place) {
        const auto draw = mix64(key + static_cast<std::uint64_t>(place) * kGamma);
        std::swap(order[place], order[below(draw, place + 1)]);
    }
    return result;
}

// Tokens of all sequences in order, with every index, length and sum checked.
std::int64_t count_tokens(const std::int64_t* lengths, std::int64_t sequences, const std::int64_t* order,
                          std::int64_t places) {
    std::int64_t total = 0;
    for (std::int64_t place = 0; place < places; ++place) {
        const std::int64_t sequence = order[place];
        if (sequence < 0 || sequence >= sequences)
            throw std::out_of_range("order[" + std::to_string(place) + "] is sequence " + std::to_string(sequence) +
                                    " of " + std::to_string(sequences));
        if (lengths[sequence] < 0)
            throw std::invalid_argument("sequence " + std::to_string(sequence) + " has a negative length");
        if (lengths[sequence] > std::numeric_limits<std::int64_t>::max() - total)
            throw std::overflow_error("the lengths add up to more than 64 bits");
        total += lengths[sequence];
    }
    return total;
}

// Rows (place in order, offset) of token start, start + L, start + 2 L ... of the sequences laid end to end: sample j
// runs from row j to row j + 1, both included. keep_partial adds the rest as a shorter last sample.
py::array_t<std::int64_t> sample_index(const Array<std::int64_t>& lengths, const Array<std::int64_t>& order,
                                       std::int64_t seq_length, bool keep_partial, std::int64_t start) {
    require_flat(lengths, "lengths");
    require_flat(order, "order");
    if (seq_length < 1) throw std::invalid_argument("seq_length " + std::to_string(seq_length) + " must be at least 1");
    if (start < 0) throw std::invalid_argument("start " + std::to_string(start) + " is negative");
    const std::int64_t *sizes = lengths.data(), *sequences = order.data();
    std::int64_t steps = 0, samples = 0;
    {
        py::gil_scoped_release free;
        steps = std::max<std::int64_t>(count_tokens(sizes, lengths.size(), sequences, order.size()) - 1 - start, 0);
        samples = steps / seq_length + (keep_partial && steps % seq_length != 0 ? 1 : 0);
    }
    py::array_t<std::int64_t> result({samples + 1, std::int64_t{2}});
    std::int64_t* row = result.mutable_data();
    if (samples == 0) {
        row[0] = row[1] = 0;
        return result;
    }
    py::gil_scoped_release free;
    std::int64_t place = 0, begin = 0;  // begin: tokens before this place
    for (std::int64_t sample = 0; sample <= samples; ++sample, row += 2) {
        const std::int64_t token = start + (sample == samples && keep_partial ? steps : sample * seq_length);
        while (begin + sizes[sequences[place]] <= token) begin += sizes[sequences[place++]];
        row[0] = place;
        row[1] = token - begin;
    }
    return result;
}

// Which dataset gives the next sample, and which of its samples: the one furthest behind its share, ties to the lowest.
std::pair<py::array_t<std::int64_t>, py::array_t<std::int64_t>> blend(const Array<double>& weights,
                                                                      const Array<std::int64_t>& taken,
                                                                      const Array<std::int64_t>& limits,
                                                                      std::int64_t count) {
    require_flat(weights, "weights");
    require_flat(taken, "taken");
    require_flat(limits, "limits");
    const std::int64_t datasets = weights.size();
    if (taken.size() != datasets || limits.size() != datasets)
        throw std::invalid_argument("weights, taken and limits must have the same length");
    if (count < 0) throw std::invalid_argument("count " + std::to_string(count) + " is negative");
    Array<std::int64_t> state(datasets);
    std::copy(taken.data(), taken.data() + datasets, state.mutable_data());
    py::array_t<std::int64_t> which(count), sample(count);
    std::int64_t *used = state.mutable_data(), *out_which = which.mutable_data(), *out_sample = sample.mutable_data();
    const double* share = weights.data();
    const std::int64_t* limit = limits.data();
    py::gil_scoped_release free;
    std::int64_t given = 0;
    for (std::int64_t d = 0; d < datasets; ++d) given += used[d];
    for (std::int64_t at = 0; at < count; ++at, ++given) {
        const double total = static_cast<double>(std::max<std::int64_t>(given, 1));
        std::int64_t best = -1;
        double most = 0.0;
        for (std::int64_t d = 0; d < datasets; ++d) {
            const double behind = share[d] * total - static_cast<double>(used[d]);
            if (used[d] < limit[d] && (best < 0 || behind > most)) {
                best = d;
                most = behind;
            }
        }
        if (best < 0) throw std::invalid_argument("all datasets are used up after " + std::to_string(given) + " samples");
        out_which[at] = best;
        out_sample[at] = used[best]++;
    }
    return {which, sample};
}

}  // namespace

PYBIND11_MODULE(_indices, module) {
    module.doc() = "Orders of documents and samples: arrays in, arrays out.";
    module.def("permutation", &permutation, py::arg("count"), py::arg("key"));
    module.def("sample_index", &sample_index, py::arg("lengths"), py::arg("order"), py::arg("seq_length"),
               py::arg("keep_partial"), py::arg("start") = 0);
    module.def("blend", &blend, py::arg("weights"), py::arg("taken"), py::arg("limits"), py::arg("count"));
}
