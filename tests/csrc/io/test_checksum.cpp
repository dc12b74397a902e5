// Every backend of the checksum is the same function, at every length and alignment, and sees every flipped bit.
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "io/checksum.h"
#include "io/checksum_backends.h"

using namespace memsys;

namespace {

std::vector<uint8_t> random_bytes(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// The definition, bit by bit, sharing nothing with the library.
uint32_t by_definition(const uint8_t* data, int64_t bytes) {
  uint32_t state = 0xFFFFFFFF;
  for (int64_t at = 0; at < bytes; ++at) {
    state ^= data[at];
    for (int bit = 0; bit < 8; ++bit) state = (state & 1) != 0 ? (state >> 1) ^ 0x82F63B78 : state >> 1;
  }
  return ~state;
}

uint32_t run(const ChecksumBackend& backend, const uint8_t* data, int64_t bytes, uint32_t seed = 0) {
  return ~backend.advance(~seed, data, bytes);
}

[[noreturn]] void fail_differs(const ChecksumBackend& backend, const uint8_t* data, int64_t bytes) {
  const std::string modulo = std::to_string(reinterpret_cast<uintptr_t>(data) % 64);
  check::fail(__FILE__, __LINE__,
              std::string(backend.name) + " differs from portable at " + std::to_string(bytes) +
                  " bytes from an address that is " + modulo + " modulo 64");
}

void check_same(const ChecksumBackend& backend, const uint8_t* data, int64_t bytes, uint32_t seed) {
  if (run(backend, data, bytes, seed) != crc32c_portable(data, bytes, seed)) fail_differs(backend, data, bytes);
}

template <typename Body>
void for_each_supported(Body body) {
  for (const ChecksumBackend& backend : checksum_backends())
    if (backend.is_supported()) body(backend);
}

}  // namespace

TEST(checksum_known_vectors) {
  const std::vector<uint8_t> zeros(32, 0), ones(32, 0xFF);
  std::vector<uint8_t> rising(32);
  for (size_t at = 0; at < rising.size(); ++at) rising[at] = static_cast<uint8_t>(at);
  for_each_supported([&](const ChecksumBackend& backend) {
    CHECK_EQUAL(run(backend, reinterpret_cast<const uint8_t*>("123456789"), 9), 0xE3069283u);
    CHECK_EQUAL(run(backend, zeros.data(), 32), 0x8A9136AAu);
    CHECK_EQUAL(run(backend, ones.data(), 32), 0x62A8AB43u);
    CHECK_EQUAL(run(backend, rising.data(), 32), 0x46DD794Eu);
    CHECK_EQUAL(run(backend, nullptr, 0), 0u);
  });
}

TEST(checksum_portable_is_the_definition) {
  const auto bytes = random_bytes(3000, 1);
  for (int64_t count = 0; count <= 3000; count += 7)
    CHECK_EQUAL(crc32c_portable(bytes.data(), count), by_definition(bytes.data(), count));
}

TEST(checksum_chooses_the_fastest_supported) {
  std::string wanted;
  for_each_supported([&](const ChecksumBackend& backend) { wanted = wanted.empty() ? backend.name : wanted; });
  CHECK_EQUAL(crc32c_implementation(), wanted);
  CHECK_EQUAL(crc32c("123456789", 9), 0xE3069283u);
  CHECK_THROWS(crc32c("", -1), InputError);
}

TEST(checksum_backends_agree_at_every_length_and_offset) {
  const auto bytes = random_bytes(4100 + 128, 2);
  for_each_supported([&](const ChecksumBackend& backend) {
    for (int64_t offset = 0; offset < 64; ++offset) {
      const uint32_t seed = 0x12345678u * static_cast<uint32_t>(offset);
      uint32_t wanted = seed;
      for (int64_t count = 0; count <= 4100; ++count) {
        if (run(backend, bytes.data() + offset, count, seed) != wanted)
          fail_differs(backend, bytes.data() + offset, count);
        wanted = crc32c_portable(bytes.data() + offset + count, 1, wanted);
      }
    }
  });
}

TEST(checksum_backends_agree_on_large_data) {
  const auto bytes = random_bytes((5 << 20) + 64, 3);
  std::mt19937_64 random(4);
  for_each_supported([&](const ChecksumBackend& backend) {
    check_same(backend, bytes.data(), static_cast<int64_t>(bytes.size()), 0);
    for (int round = 0; round < 12; ++round) {
      const auto offset = static_cast<int64_t>(random() % 64);
      const auto count = static_cast<int64_t>(random() % (bytes.size() - 64));
      check_same(backend, bytes.data() + offset, count, static_cast<uint32_t>(random()));
    }
  });
}

TEST(checksum_continues_at_any_cut) {
  const auto bytes = random_bytes(20000, 5);
  std::mt19937_64 random(6);
  for_each_supported([&](const ChecksumBackend& backend) {
    const uint32_t whole = run(backend, bytes.data(), 20000);
    for (int round = 0; round < 300; ++round) {
      const auto cut = static_cast<int64_t>(random() % 20001);
      const uint32_t first = run(backend, bytes.data(), cut);
      CHECK_EQUAL(run(backend, bytes.data() + cut, 20000 - cut, first), whole);
    }
  });
}

TEST(checksum_sees_every_flipped_bit) {
  auto bytes = random_bytes(2100, 7);
  for_each_supported([&](const ChecksumBackend& backend) {
    const uint32_t clean = run(backend, bytes.data(), 2100);
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      const auto mask = static_cast<uint8_t>(1u << (bit % 8));
      bytes[bit / 8] ^= mask;
      CHECK(run(backend, bytes.data(), 2100) != clean);
      bytes[bit / 8] ^= mask;
    }
  });
}
