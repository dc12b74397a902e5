// The one source of chance in fuzzing (splitmix64): small, fast, and the same everywhere for the same seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t value = state_ += 0x9e3779b97f4a7c15U;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9U;
    value = (value ^ value >> 27) * 0x94d049bb133111ebU;
    return value ^ value >> 31;
  }
  // In [0, count); 0 for an empty range.
  size_t below(size_t count) { return count == 0 ? 0 : static_cast<size_t>(bits() % count); }
  bool one_in(size_t count) { return below(count) == 0; }
  template <typename Value>
  const Value& pick(const std::vector<Value>& values) {
    return values[below(values.size())];
  }

 private:
  uint64_t state_;
};

// Whole numbers at which arithmetic goes wrong.
inline uint64_t edge_number(Random& random) {
  const uint64_t power = uint64_t{1} << random.below(64);
  switch (random.below(5)) {
    case 0:
      return random.below(20);
    case 1:
      return power;
    case 2:
      return power - 1 - random.below(3);
    case 3:
      return (uint64_t{1} << 63) - random.below(8200);
    default:
      return random.bits() >> random.below(64);
  }
}

// One change that knows nothing of the format: a bit, a byte, a stretch removed, doubled or moved.
inline void change_bytes(std::string& bytes, Random& random) {
  const size_t at = random.below(bytes.size() + 1), count = 1 + random.below(1 + random.below(16));
  if (bytes.empty() || random.one_in(5)) {
    bytes.insert(at, 1, static_cast<char>(random.bits()));
  } else if (random.one_in(4)) {
    bytes.erase(at == bytes.size() ? 0 : at, count);
  } else if (random.one_in(3)) {
    bytes.insert(random.below(bytes.size() + 1), bytes.substr(random.below(bytes.size()), count));
  } else if (random.one_in(2)) {
    bytes[random.below(bytes.size())] ^= static_cast<char>(1u << random.below(8));
  } else {
    bytes[random.below(bytes.size())] = static_cast<char>(random.bits());
  }
}

}  // namespace fuzz
