// See block_history.h.
#include "device/block_history.h"

#include <cstdio>

#include "base/error.h"

namespace memsys {
namespace {

constexpr size_t kLogCount = 8;

std::string hex(uintptr_t address) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
  return text;
}

}  // namespace

void BlockHistory::read(ByteRange range, const Operation& operation, Author author) {
  for_each(range, [&](uintptr_t begin, Segment& segment) {
    expect_not_taken_back(operation, begin, segment);
    expect_after(segment.write, operation, begin, segment);
    if (author == Author::program && segment.state != State::live) return begin_anew(segment, State::live, operation);
    if (segment.state == State::unknown) segment.state = State::live;
    const Access access = access_of(operation);
    log(segment, access);
    for (Access& earlier : segment.reads)
      if (earlier.actor == access.actor) {
        earlier = access;
        return;
      }
    segment.reads.push_back(access);
  });
}

void BlockHistory::write(ByteRange range, const Operation& operation, Author) {
  for_each(range, [&](uintptr_t begin, Segment& segment) {
    expect_not_taken_back(operation, begin, segment);
    expect_after(segment.write, operation, begin, segment);
    expect_after(segment.reads, operation, begin, segment);
    begin_anew(segment, State::live, operation);
  });
}

void BlockHistory::hand_out(ByteRange range, const Operation& operation) {
  for_each(range, [&](uintptr_t, Segment& segment) { begin_anew(segment, State::live, operation); });
}

void BlockHistory::take_back(ByteRange range, const Operation& operation) {
  for_each(range, [&](uintptr_t begin, Segment& segment) {
    expect_not_taken_back(operation, begin, segment);
    expect_after(segment.write, operation, begin, segment);
    expect_after(segment.reads, operation, begin, segment);
  });
  for_each(range, [&](uintptr_t, Segment& segment) { begin_anew(segment, State::taken_back, operation); });
}

void BlockHistory::give_away(ByteRange range, const Operation& operation) {
  for_each(range, [&](uintptr_t begin, Segment& segment) {
    expect_not_taken_back(operation, begin, segment);
    expect_after(segment.write, operation, begin, segment);
    expect_after(segment.reads, operation, begin, segment);
    begin_anew(segment, State::given_away, operation);
  });
}

void BlockHistory::forget(ByteRange range) {
  split_at(range.begin);
  split_at(range.end);
  segments_.erase(segments_.lower_bound(range.begin), segments_.lower_bound(range.end));
}

void BlockHistory::for_each(ByteRange range, const std::function<void(uintptr_t, Segment&)>& visit) {
  split_at(range.begin);
  split_at(range.end);
  uintptr_t begin = range.begin;
  while (begin < range.end) {
    auto found = segments_.lower_bound(begin);
    if (found == segments_.end() || found->first > begin) {
      Segment fresh;
      fresh.end = found == segments_.end() ? range.end : std::min(range.end, found->first);
      found = segments_.emplace(begin, std::move(fresh)).first;
    }
    visit(begin, found->second);
    begin = found->second.end;
  }
}

void BlockHistory::split_at(uintptr_t address) {
  auto found = segments_.lower_bound(address);
  if (found == segments_.begin()) return;
  --found;
  if (found->second.end <= address) return;
  Segment tail = found->second;
  found->second.end = address;
  segments_.emplace(address, std::move(tail));
}

void BlockHistory::expect_after(const std::vector<Access>& earlier, const Operation& operation, uintptr_t begin,
                                const Segment& segment) const {
  for (const Access& access : earlier) {
    const uint64_t known = operation.clock->at(access.actor);
    if (known >= access.tick) continue;
    const std::string here = actor_name_(operation.actor), there = actor_name_(access.actor);
    throw OrderError("missing edge: " + describe(access_of(operation)) + " is not ordered after " + describe(access) +
                     ": " + here + " knows " + there + " only up to tick " + std::to_string(known) + ". Let " + here +
                     " wait for an event recorded on " + there + " after that. " + describe(begin, segment));
  }
}

void BlockHistory::expect_not_taken_back(const Operation& operation, uintptr_t begin, const Segment& segment) const {
  MEMSYS_EXPECT(segment.state != State::taken_back, OrderError,
                "use after free: " + describe(access_of(operation)) + " touches bytes that were freed. " +
                    describe(begin, segment));
}

std::string BlockHistory::describe(const Access& access) const {
  return std::string(access.name) + " on " + actor_name_(access.actor) + " (tick " + std::to_string(access.tick) + ")";
}

std::string BlockHistory::describe(uintptr_t begin, const Segment& segment) const {
  std::string text = "History of bytes [" + hex(begin) + ", " + hex(segment.end) + "), oldest first:";
  if (segment.log.empty()) return text + " none";
  for (const Access& access : segment.log) text += "\n  " + describe(access);
  return text;
}

BlockHistory::Access BlockHistory::access_of(const Operation& operation) {
  return {operation.actor, operation.clock->at(operation.actor), operation.name};
}

void BlockHistory::log(Segment& segment, const Access& access) {
  if (segment.log.size() == kLogCount) segment.log.erase(segment.log.begin());
  segment.log.push_back(access);
}

void BlockHistory::begin_anew(Segment& segment, State state, const Operation& operation) {
  segment.state = state;
  segment.write.assign(1, access_of(operation));
  segment.reads.clear();
  log(segment, access_of(operation));
}

}  // namespace memsys
