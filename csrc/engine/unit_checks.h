// The checksums of a file's units, and which of them were found right already. A unit is marked only by a check that
// it passed, so that a read that failed, or was never finished, leaves it to be checked.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "plan/read_pieces.h"

namespace memsys {

// first: a unit is checked until it was found right once. always: at every read. never: not at all.
enum class VerifyMode { first, always, never };

struct UnitMismatch {
  ByteSpan unit;  // in the file
  uint32_t wanted = 0, found = 0;
};

class UnitChecks {
 public:
  explicit UnitChecks(VerifyMode mode) : mode_(mode) {}

  // One CRC32C a unit. Throws InputError for a count that does not fit, for an offset or unit of no whole pages, and
  // for a range that overlaps an earlier one.
  void add(const UnitRange& range, std::vector<uint32_t> values);
  std::vector<UnitRange> ranges_in(const ByteSpan& span) const;  // those that share a byte with it, by offset
  // Whether a unit that lies wholly in `span` still has to be checked.
  bool is_due(const ByteSpan& span) const;
  // Checks what is due in `span`, whose first byte lies at `data`; stops at the first unit that is wrong.
  std::optional<UnitMismatch> check(const ByteSpan& span, const void* data) const;

 private:
  struct Entry;
  std::vector<std::shared_ptr<const Entry>> entries_in(const ByteSpan& span) const;
  template <typename Visit>
  void visit_due(const ByteSpan& span, Visit visit) const;

  const VerifyMode mode_;
  mutable std::mutex mutex_;                           // guards the list; never held while bytes are checked
  std::vector<std::shared_ptr<const Entry>> entries_;  // by offset
};

}  // namespace memsys
