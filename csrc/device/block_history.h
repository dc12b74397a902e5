// Who read and wrote which bytes, and whether each access is ordered after the ones it conflicts with. Ranges may
// overlap in any way: the bytes are kept as disjoint segments, split where an access begins or ends.
//
// Rules, each broken by an OrderError that tells the segment's history:
//  - a read happens after the last write;
//  - a write, and a free, happens after the last write and every read since;
//  - bytes a pool took back are not touched until it hands them out again, and the hand-out counts as a write.
// Memory of other allocators (torch's, malloc's) becomes known at its first access. Its free counts as a write:
// whoever gets the address next must be ordered after it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "device/vector_clock.h"

namespace memsys {

struct ByteRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;
};

// One operation of an actor, at the last tick of its clock.
struct Operation {
  int actor = 0;
  const VectorClock* clock = nullptr;
  const char* name = "";
};

// Whether the operation is the program's own, which also made bytes that nobody has announced before, or a
// transfer, which made nothing.
enum class Author { program, transfer };

class BlockHistory {
 public:
  explicit BlockHistory(std::function<std::string(int)> actor_name) : actor_name_(std::move(actor_name)) {}

  void read(ByteRange range, const Operation& operation, Author author);
  void write(ByteRange range, const Operation& operation, Author author);
  // A pool hands these bytes out.
  void hand_out(ByteRange range, const Operation& operation);
  // A pool takes them back.
  void take_back(ByteRange range, const Operation& operation);
  // The owner returns them to an allocator outside the device.
  void give_away(ByteRange range, const Operation& operation);
  // The mapping is gone; the addresses may come back as something else.
  void forget(ByteRange range);

 private:
  enum class State { unknown, live, given_away, taken_back };
  struct Access {
    int actor = 0;
    uint64_t tick = 0;
    const char* name = "";
  };
  struct Segment {
    uintptr_t end = 0;
    State state = State::unknown;
    std::vector<Access> write;  // the last one, if any
    std::vector<Access> reads;  // since then, the latest of each actor
    std::vector<Access> log;    // the latest few of all, for the message
  };
  using Segments = std::map<uintptr_t, Segment>;

  // Calls `visit` on segments that cover exactly the range, made where there were none.
  void for_each(ByteRange range, const std::function<void(uintptr_t, Segment&)>& visit);
  void split_at(uintptr_t address);
  void expect_after(const std::vector<Access>& earlier, const Operation& operation, uintptr_t begin,
                    const Segment& segment) const;
  void expect_not_taken_back(const Operation& operation, uintptr_t begin, const Segment& segment) const;
  std::string describe(const Access& access) const;
  std::string describe(uintptr_t begin, const Segment& segment) const;
  static Access access_of(const Operation& operation);
  static void log(Segment& segment, const Access& access);
  static void begin_anew(Segment& segment, State state, const Operation& operation);

  const std::function<std::string(int)> actor_name_;
  Segments segments_;
};

}  // namespace memsys
