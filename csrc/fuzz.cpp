// Random bytes in, nothing out: every C++ function is called with what they say, under the address and
// undefined-behaviour sanitizers (`make fuzz`). A refusal is an exception; anything else that is wrong ends the program.
// Built with -DLIBFUZZER and -fsanitize=fuzzer it is a libFuzzer target; without, it draws its own bytes from a seed.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "blend.h"
#include "cpu_kernels.h"
#include "index_file.h"
#include "packing.h"
#include "samples.h"
#include "shuffle.h"

using namespace megascratch;

namespace {

// Takes numbers from the bytes it was given; zeros when they are used up.
class Bytes {
  public:
    Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    template <typename T>
    T number() {
        T value{};
        const std::size_t taken = std::min(sizeof(T), size_ - at_);
        std::memcpy(&value, data_ + at_, taken);
        at_ += taken;
        return value;
    }

    // Mostly small, sometimes anything: both sides of every bound.
    std::int64_t integer() {
        const auto kind = number<std::uint8_t>();
        return kind < 240 ? kind % 24 - 2 : number<std::int64_t>();
    }

    template <typename T>
    std::vector<T> array(std::size_t most) {
        std::vector<T> values(number<std::uint8_t>() % (most + 1));
        for (T& value : values) value = static_cast<T>(integer());
        return values;
    }

    std::vector<char> rest() const { return {data_ + at_, data_ + size_}; }

  private:
    const std::uint8_t* data_;
    std::size_t size_, at_ = 0;
};

template <typename T>
View<T> view(const std::vector<T>& values) {
    return {values.data(), static_cast<std::int64_t>(values.size())};
}

std::int64_t small(Bytes& bytes) { return bytes.number<std::uint8_t>() % 70; }

void check(bool holds, const char* law) {
    if (holds) return;
    std::fprintf(stderr, "broken: %s\n", law);
    std::abort();
}

template <typename T>
void check_permutation(std::vector<T> items) {
    std::sort(items.begin(), items.end());
    for (std::size_t at = 0; at < items.size(); ++at) check(items[at] == static_cast<T>(at), "a shuffle loses nothing");
}

void fuzz_shuffles(Bytes& bytes) {
    std::vector<std::int64_t> items(bytes.number<std::uint16_t>() % 700);
    for (std::size_t at = 0; at < items.size(); ++at) items[at] = static_cast<std::int64_t>(at);
    shuffle(items.data(), static_cast<std::int64_t>(items.size()), KeyedDraws{bytes.number<std::uint64_t>()});
    check_permutation(items);
    std::array<std::uint32_t, Mt19937::kWords + 1> state;
    state.fill(bytes.number<std::uint32_t>() | 1U);
    state[Mt19937::kWords] = bytes.number<std::uint16_t>() % 640;
    Mt19937 random(state.data());
    const auto draw = [&](auto place, auto many, auto* out) { random.partners(place, many, out); };
    shuffle(items.data(), static_cast<std::int64_t>(items.size()), draw);
    check_permutation(items);
    const auto top = static_cast<std::int64_t>(bytes.number<std::uint64_t>() >> 2 | 64);
    std::array<std::int64_t, 16> partners;
    random.partners(top, 16, partners.data());
    for (std::int64_t at = 0; at < 16; ++at)
        check(0 <= partners[at] && partners[at] <= top - at, "a partner is not above its place");
    random.save();
}

template <typename Order>
void fuzz_samples(Bytes& bytes) {
    const auto lengths = bytes.array<std::int32_t>(20);
    const auto order = bytes.array<Order>(20);
    const std::int64_t seq_length = bytes.integer(), rows = small(bytes);
    const Place first{bytes.integer(), bytes.integer()}, last{bytes.integer(), bytes.integer()};
    std::vector<std::int64_t> out(2 * static_cast<std::size_t>(rows));
    try {
        walk(view(lengths), view(order), seq_length, first, rows, out.data());
    } catch (const std::exception&) {
    }
    try {
        std::int64_t pieces = 0;
        pieces_between(view(lengths), view(order), first, last, [&](const Piece&) { ++pieces; });
        check(pieces <= static_cast<std::int64_t>(order.size()), "a sample has no more pieces than there are places");
    } catch (const std::exception&) {
    }
    const std::int64_t tokens = count_tokens(view(lengths), view(order)), start = small(bytes);
    require(seq_length >= 1, "seq_length");
    const std::int64_t samples = count_samples(tokens, seq_length, bytes.number<std::uint8_t>() % 2 != 0, start);
    if (samples > 1000) return;
    std::vector<std::int64_t> cuts(2 * static_cast<std::size_t>(samples) + 2);
    cut(view(lengths), view(order), tokens, seq_length, start, samples, cuts.data());
    for (std::int64_t sample = 0; samples > 0 && sample <= samples; ++sample)
        check(cuts[2 * sample + 1] < lengths[order[cuts[2 * sample]]], "a cut lies inside its sequence");
}

template <typename Token>
void fuzz_tokens(Bytes& bytes) {
    const auto lengths = bytes.array<std::int32_t>(8);
    const auto pointers = bytes.array<std::int64_t>(8);
    const std::int64_t sequence = bytes.integer(), offset = bytes.integer(), count = bytes.integer();
    const std::vector<char> raw = bytes.rest();
    const Tokens file{raw.data(), static_cast<std::int64_t>(raw.size()), view(lengths), view(pointers)};
    require(count >= 0 && count <= file.size, "a piece is longer than its file");
    std::vector<std::int64_t> out(static_cast<std::size_t>(count));
    const std::int64_t last = 100;
    const bool inside = copy_tokens<Token>(file, sequence, offset, count, last, out.data());
    check(inside == std::all_of(out.begin(), out.end(), [&](auto id) { return id >= 0 && id <= last; }),
          "an id outside the vocabulary is told");
    const std::vector<std::uint8_t> marks(static_cast<std::size_t>(file.size / 4 + 1), 1);
    check(all_marked(file, {sequence, offset, count}, sizeof(Token), view(marks), 4), "every block is marked");
}

// The rule of blend.h as it is written there, one sample after the other.
std::int64_t furthest(const std::vector<double>& weights, const std::vector<std::int64_t>& taken,
                      const std::vector<std::int64_t>& limits, std::int64_t given) {
    std::int64_t best = -1;
    double most = 0.0;
    for (std::size_t set = 0; set < weights.size(); ++set) {
        if (taken[set] >= limits[set]) continue;
        const auto total = static_cast<double>(std::max<std::int64_t>(given, 1));
        const double behind = weights[set] * total - static_cast<double>(taken[set]);
        if (best < 0 || behind > most) most = behind, best = static_cast<std::int64_t>(set);
    }
    return best;
}

void fuzz_blend(Bytes& bytes) {
    const std::size_t sets = bytes.number<std::uint8_t>() % (bytes.number<std::uint8_t>() < 16 ? 120 : 12);
    const bool wild = bytes.number<std::uint8_t>() < 64;  // else weights of sum 1, and many samples for each set
    std::vector<double> weights(sets);
    std::vector<std::int64_t> taken(sets), limits(sets);
    double sum = 1.0;
    for (std::size_t at = 0; at < sets; ++at) {
        const bool any = wild && bytes.number<std::uint8_t>() >= 250;
        weights[at] = any ? bytes.number<double>() : bytes.number<std::uint16_t>() / 65536.0;
        taken[at] = wild ? bytes.integer() : 0;
        limits[at] = wild ? bytes.integer() : bytes.number<std::uint16_t>() % 4096;
        sum += weights[at];
    }
    for (double& weight : weights) weight /= wild ? 1.0 : sum - 1.0;
    const std::int64_t count = wild ? small(bytes) : 10 * small(bytes) + bytes.number<std::uint16_t>() % 2000;
    std::vector<std::int32_t> which(count);
    std::vector<std::int64_t> sample(count), before = taken;
    blend(view(weights), taken.data(), view(limits), count, which.data(), sample.data());
    std::int64_t given = 0;
    for (const std::int64_t one : before) given += one;
    for (std::int64_t at = 0; at < count; ++at, ++given) {
        check(which[at] == furthest(weights, before, limits, given), "a sample comes from the set furthest behind");
        check(sample[at] == before[which[at]]++, "a set gives its samples in order");
    }
    check(before == taken, "what was taken is counted");
}

void fuzz_packing(Bytes& bytes) {
    const auto lengths = bytes.array<std::int32_t>(30);
    const std::int64_t seq_length = bytes.number<std::uint8_t>() - 1, first = bytes.integer(), stop = bytes.integer();
    for (const std::int32_t length : lengths) require(length < 10000, "more tokens than a fuzzer has time for");
    const Packed packed = best_fit(view(lengths), first, stop, seq_length);
    std::int64_t begin = 0;
    for (const std::int64_t end : packed.ends) {
        std::int64_t tokens = 0;
        for (std::int64_t at = begin; at < end; ++at)
            tokens += std::min<std::int64_t>(lengths[packed.pieces[2 * at]] - packed.pieces[2 * at + 1], seq_length + 1);
        check(end > begin && tokens >= 1 && tokens <= seq_length + 1, "a sample is neither empty nor too full");
        begin = end;
    }
    check(begin * 2 == static_cast<std::int64_t>(packed.pieces.size()), "every piece lies in one sample");
}

// An index with a true header, so that the fuzzer reaches its arrays; or the bytes as they are.
void fuzz_index(Bytes& bytes) {
    const bool whole = bytes.number<std::uint8_t>() % 2;
    const std::uint64_t counts[2] = {bytes.number<std::uint8_t>() % 5u, 1 + bytes.number<std::uint8_t>() % 5u};
    const std::uint8_t code = bytes.number<std::uint8_t>() % 10;
    const std::int64_t bin_bytes = small(bytes);
    std::vector<char> raw = bytes.rest();
    if (whole) {
        const std::uint64_t version = 1;
        std::vector<char> header(34);
        std::memcpy(header.data(), "MMIDIDX\0\0", 9);
        std::memcpy(header.data() + 9, &version, 8);
        header[17] = static_cast<char>(code);
        std::memcpy(header.data() + 18, counts, 16);
        raw.resize(12 * counts[0] + 8 * counts[1]);
        for (std::size_t at = 0; at < counts[0]; ++at)  // small lengths and pointers are the ones that can be right
            raw[4 * at + 1] = raw[4 * at + 2] = raw[4 * at + 3] = 0;
        raw.insert(raw.begin(), header.begin(), header.end());
    }
    sound_index(raw.data(), static_cast<std::int64_t>(raw.size()), bin_bytes);
}

// Kernels of a layer on memory that is exactly as large as they are told, of any bits, NaN and infinities among them.
template <typename T>
std::vector<T> numbers(Bytes& bytes, std::int64_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    const T few[4] = {bytes.number<T>(), bytes.number<T>(), static_cast<T>(bytes.integer()), T(0.5)};
    for (std::size_t at = 0; at < values.size(); ++at) values[at] = few[at % 4];
    return values;
}

template <typename T>
void fuzz_rows(Bytes& bytes) {
    const std::int64_t rows = small(bytes) % 9, width = 1 + small(bytes);
    const auto wide = numbers<T>(bytes, 2 * rows * width), x = numbers<T>(bytes, rows * width),
               weight = numbers<T>(bytes, width);
    std::vector<T> out(x.size()), grad_x(x.size()), both(wide.size()), scale(rows), grad_weight(width);
    swiglu(wide.data(), out.data(), rows, width);
    swiglu_backward(wide.data(), x.data(), both.data(), rows, width);
    gelu_backward<T, false>(x.data(), out.data(), grad_x.data(), rows * width);
    gelu_backward<T, true>(x.data(), out.data(), grad_x.data(), rows * width);
    rms_norm(x.data(), weight.data(), T(1e-5), out.data(), scale.data(), rows, width);
    rms_norm_backward(x.data(), weight.data(), scale.data(), out.data(), grad_x.data(), grad_weight.data(), rows, width);
}

template <typename T>
void fuzz_attention(Bytes& bytes) {
    const std::int64_t count = small(bytes) % 4, rows = small(bytes) % 20, first = small(bytes), columns = first + rows;
    auto scores = numbers<T>(bytes, count * rows * columns), grad = numbers<T>(bytes, count * rows * columns);
    causal_softmax(scores.data(), count, rows, columns, first, T(0.3));
    for (std::int64_t at = 0; at < count * rows * columns; ++at)
        check(at % columns <= first + at / columns % rows || scores[at] == 0, "a later key has no weight");
    causal_softmax_backward(scores.data(), grad.data(), count, rows, columns, first, T(0.3));

    const Steps size{small(bytes) % 4, small(bytes) % 4, small(bytes) % 6};
    const std::int64_t half = 1 + small(bytes) % 40, heads = size.b * size.n * size.s;
    const auto x = numbers<T>(bytes, 2 * heads * half), angles = numbers<T>(bytes, size.b * size.s * half);
    std::vector<T> turned(x.size());
    const Steps sequence_first{2 * size.n * half, 2 * half, 2 * size.b * size.n * half};
    const Steps sample_first{2 * size.n * size.s * half, 2 * size.s * half, 2 * half}, angle{size.s * half, 0, half};
    turn(x.data(), sequence_first, turned.data(), sample_first, angles.data(), angle, angles.data(), angle, size, half,
         bytes.number<std::uint8_t>() % 2);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    try {
        switch (bytes.number<std::uint8_t>() % 12) {
            case 0: fuzz_shuffles(bytes); break;
            case 1: fuzz_samples<std::int32_t>(bytes); break;
            case 2: fuzz_samples<std::int64_t>(bytes); break;
            case 3: fuzz_tokens<std::uint16_t>(bytes); break;
            case 4: fuzz_tokens<std::int64_t>(bytes); break;
            case 5: fuzz_blend(bytes); break;
            case 6: fuzz_packing(bytes); break;
            case 7: fuzz_rows<float>(bytes); break;
            case 8: fuzz_rows<double>(bytes); break;
            case 9: fuzz_attention<float>(bytes); break;
            case 10: fuzz_attention<double>(bytes); break;
            default: fuzz_index(bytes);
        }
    } catch (const std::exception&) {
    }
    return 0;
}

#ifndef LIBFUZZER
int main(int count, char** words) {
    const long executions = count > 1 ? std::atol(words[1]) : 10'000'000;
    const std::uint64_t seed = count > 2 ? std::strtoull(words[2], nullptr, 10) : 1;
    std::vector<std::uint8_t> data;
    for (long at = 0; at < executions; ++at) {
        const std::uint64_t key = mix64(seed * kGamma + static_cast<std::uint64_t>(at));
        data.resize(key % 200);
        for (std::size_t byte = 0; byte < data.size(); ++byte)
            data[byte] = static_cast<std::uint8_t>(mix64(key + byte) >> (mix64(key ^ byte) % 4 == 0 ? 60 : 56));
        LLVMFuzzerTestOneInput(data.data(), data.size());
        if ((at + 1) % 1'000'000 == 0) std::printf("%ld executions\n", at + 1), std::fflush(stdout);
    }
    std::printf("%ld executions of seed %llu, no finding\n", executions, static_cast<unsigned long long>(seed));
}
#endif
