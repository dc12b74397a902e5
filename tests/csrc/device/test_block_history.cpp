// Ranges that overlap in every way, checked against a model that keeps each byte on its own.
#include <array>
#include <random>

#include "base/error.h"
#include "csrc/check.h"
#include "device/block_history.h"

namespace {

using namespace memsys;

constexpr int kActors = 3;
constexpr uintptr_t kBytes = 24;

struct ByteModel {
  std::array<uint64_t, kActors> writes{}, reads{};
};

bool knows(const VectorClock& clock, const std::array<uint64_t, kActors>& ticks) {
  for (int actor = 0; actor < kActors; ++actor)
    if (clock.at(actor) < ticks[static_cast<size_t>(actor)]) return false;
  return true;
}

// The same access to every byte of the range in the model; false if any byte forbids it.
bool model_access(std::array<ByteModel, kBytes>& bytes, ByteRange range, int actor, const VectorClock& clock,
                  bool writes) {
  bool allowed = true;
  for (uintptr_t at = range.begin; at < range.end; ++at)
    allowed = allowed && knows(clock, bytes[at].writes) && (!writes || knows(clock, bytes[at].reads));
  if (!allowed) return false;
  for (uintptr_t at = range.begin; at < range.end; ++at) {
    const auto index = static_cast<size_t>(actor);
    if (writes) bytes[at] = {};
    (writes ? bytes[at].writes : bytes[at].reads)[index] = clock.at(actor);
  }
  return true;
}

void fuzz(uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](uint32_t bound) { return static_cast<int>(random() % bound); };
  BlockHistory history([](int actor) { return "actor " + std::to_string(actor); });
  std::array<ByteModel, kBytes> bytes{};
  std::array<VectorClock, kActors> clocks;
  for (int count = 0; count < 60; ++count) {
    const int actor = below(kActors);
    VectorClock& clock = clocks[static_cast<size_t>(actor)];
    if (below(2) == 0) clock.join(clocks[static_cast<size_t>(below(kActors))]);
    clock.advance(actor);
    const auto begin = static_cast<uintptr_t>(below(kBytes));
    const ByteRange range{begin, begin + 1 + static_cast<uintptr_t>(below(static_cast<uint32_t>(kBytes - begin)))};
    const bool writes = below(2) == 0;
    const Operation operation{actor, &clock, writes ? "write" : "read"};
    bool allowed = true;
    try {
      if (writes)
        history.write(range, operation, Author::transfer);
      else
        history.read(range, operation, Author::transfer);
    } catch (const OrderError&) {
      allowed = false;
    }
    CHECK_EQUAL(allowed, model_access(bytes, range, actor, clock, writes));
    if (!allowed) return;  // a refused access may be half recorded
  }
}

}  // namespace

TEST(overlapping_ranges_agree_with_a_model_of_single_bytes) {
  for (uint32_t seed = 0; seed < 3000; ++seed) fuzz(seed);
}

TEST(only_the_bytes_that_overlap_conflict) {
  BlockHistory history([](int actor) { return "actor " + std::to_string(actor); });
  VectorClock first, second;
  first.advance(0);
  second.advance(1);
  history.write({100, 200}, {0, &first, "write"}, Author::transfer);
  history.read({200, 300}, {1, &second, "read"}, Author::transfer);
  history.read({0, 100}, {1, &second, "read"}, Author::transfer);
  CHECK_THROWS(history.read({199, 201}, {1, &second, "read"}, Author::transfer), OrderError);
  CHECK_THROWS(history.write({50, 101}, {1, &second, "write"}, Author::transfer), OrderError);
  history.forget({100, 200});
  history.write({100, 200}, {1, &second, "write"}, Author::transfer);
}
