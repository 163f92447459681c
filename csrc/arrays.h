// What every function here takes: a run of numbers somewhere in memory. No Python, so that a fuzzer can call them.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace megascratch {

// Numbers that may lie anywhere: the arrays inside an .idx file are not aligned. An index that is given from outside
// goes through `at`, which checks it.
template <typename T>
class View {
  public:
    View(const void* data, std::int64_t size) : bytes_(static_cast<const char*>(data)), size_(size) {}

    std::int64_t size() const { return size_; }

    T operator[](std::int64_t place) const {
        T value;
        std::memcpy(&value, bytes_ + place * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
        return value;
    }

    T at(std::int64_t place, const char* name) const {
        if (place < 0 || place >= size_)
            throw std::out_of_range(std::string(name) + "[" + std::to_string(place) + "] of " + std::to_string(size_));
        return (*this)[place];
    }

    void prefetch(std::int64_t place) const {
        __builtin_prefetch(bytes_ + place * static_cast<std::int64_t>(sizeof(T)));
    }

  private:
    const char* bytes_;
    std::int64_t size_;
};

// For hot loops: no text is made unless the law is broken.
inline void require(bool holds, const char* law) {
    if (!holds) throw std::invalid_argument(law);
}

inline void require(bool holds, const std::string& law) { require(holds, law.c_str()); }

}  // namespace megascratch
