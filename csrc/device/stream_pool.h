// The simulated accelerator's memory: a pool ordered on streams, like torch's caching allocator. A block freed on a
// stream is handed out again at once to that stream, the latest first, so that a missing edge meets a reused block.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "device/host_memory.h"

namespace memsys {

// What freed bytes hold: as float, bfloat16 or integer a value that no test computes by chance.
inline constexpr unsigned char kPoison = 0xDB;

class StreamPool {
 public:
  struct Block {
    void* pointer = nullptr;
    bool reused = false;
  };

  StreamPool() = default;
  StreamPool(const StreamPool&) = delete;
  StreamPool& operator=(const StreamPool&) = delete;
  ~StreamPool() {
    for (const auto& [pointer, bytes] : sizes_) free_host_block(pointer);
  }

  Block take(int64_t bytes, int actor) {
    auto& list = free_[{actor, bytes}];
    if (!list.empty()) {
      void* pointer = list.back();
      list.pop_back();
      live_.insert(pointer);
      return {pointer, true};
    }
    void* pointer = allocate_host_block(bytes);
    sizes_[pointer] = bytes;
    live_.insert(pointer);
    return {pointer, false};
  }

  // Throws unless (pointer, bytes) is a block that is handed out now.
  void expect_live(void* pointer, int64_t bytes) const {
    MEMSYS_EXPECT(live_.count(pointer) == 1, OrderError,
                  "free of a block that is not handed out: freed twice, or never allocated here");
    MEMSYS_EXPECT(sizes_.at(pointer) == bytes, InputError,
                  "a block of " + std::to_string(sizes_.at(pointer)) + " bytes was freed as " + std::to_string(bytes) +
                      ": free with the size allocated");
  }

  bool is_live(const void* pointer) const { return live_.count(const_cast<void*>(pointer)) == 1; }

  void give_back(void* pointer, int64_t bytes, int actor) {
    live_.erase(pointer);
    free_[{actor, bytes}].push_back(pointer);
  }

 private:
  std::map<std::pair<int, int64_t>, std::vector<void*>> free_;
  std::map<void*, int64_t> sizes_;  // every block there is
  std::set<void*> live_;            // those handed out
};

}  // namespace memsys
