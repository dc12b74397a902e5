// What a fuzz target is to its driver: libFuzzer's two functions, and the way to say that a promise is broken. A target
// takes any bytes and returns; it knows neither files nor seeds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Changes the first `size` bytes at `data`, where there is room for `max_size`; returns the new size.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);

namespace fuzz {

// Not an exception, which the code under test could catch.
[[noreturn]] inline void broken(const std::string& what) {
  std::fprintf(stderr, "broken promise: %s\n", what.c_str());
  std::abort();
}

inline void expect(bool condition, const char* what) {
  if (!condition) broken(what);
}

}  // namespace fuzz
