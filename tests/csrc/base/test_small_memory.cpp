// The engine's small objects: every block keeps its bytes whatever threads do around it, and a fork finds no held lock.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "base/small_memory.h"
#include "csrc/check.h"

namespace {

using namespace memsys;

struct Block {
  unsigned char* data;
  std::size_t bytes;
  unsigned char pattern;
};

// A pattern over all of the block, so that an overlap with any other shows at whichever end it is.
Block filled_block(std::mt19937& random) {
  const std::size_t bytes = random() % 20000 + 1;
  Block block{static_cast<unsigned char*>(small_allocate(bytes)), bytes, static_cast<unsigned char>(random())};
  std::memset(block.data, block.pattern, bytes);
  return block;
}

bool is_whole(const Block& block) {
  for (std::size_t at = 0; at < block.bytes; ++at)
    if (block.data[at] != block.pattern) return false;
  return true;
}

int broken_blocks(uint32_t seed, int rounds) {
  std::mt19937 random(seed);
  SmallVector<Block> live;
  int broken = 0;
  for (int round = 0; round < rounds; ++round) {
    if (live.empty() || random() % 2 == 0) {
      live.push_back(filled_block(random));
      continue;
    }
    std::swap(live[random() % live.size()], live.back());
    broken += is_whole(live.back()) ? 0 : 1;
    small_free(live.back().data, live.back().bytes);
    live.pop_back();
  }
  for (const Block& block : live) {
    broken += is_whole(block) ? 0 : 1;
    small_free(block.data, block.bytes);
  }
  return broken;
}

TEST(every_block_keeps_its_bytes_in_four_threads) {
  std::atomic<int> broken = 0;
  std::vector<std::thread> threads;
  for (uint32_t seed = 0; seed < 4; ++seed)
    threads.emplace_back([&broken, seed] { broken += broken_blocks(seed, 3000); });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(broken.load(), 0);
}

TEST(blocks_are_aligned_for_any_usual_type) {
  for (std::size_t bytes : {1, 15, 16, 17, 511, 512, 513, 1024, 1025, 16384, 16385}) {
    void* block = small_allocate(bytes);
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(block) % 16, 0u);
    small_free(block, bytes);
  }
}

TEST(a_function_and_its_captures_are_destroyed_once) {
  const auto counted = std::make_shared<int>(7);
  {
    const std::function<int()> function = small_function([counted] { return *counted; });
    const std::function<int()> copy = function;
    CHECK_EQUAL(function() + copy(), 14);
    CHECK_EQUAL(counted.use_count(), 3);
  }
  CHECK_EQUAL(counted.use_count(), 1);
}

TEST(a_forked_child_can_free_what_it_inherited) {
  std::atomic<bool> is_over = false;
  // Nothing but the lock: some fork falls where this thread holds it.
  std::thread busy([&is_over] {
    while (!is_over) small_free(small_allocate(48), 48);
  });
  int failures = 0;
  for (int turn = 0; turn < 50; ++turn) {
    void* inherited = small_allocate(48);
    const pid_t child = fork();
    if (child == 0) {
      alarm(5);  // a held lock would leave the child waiting for ever
      small_free(inherited, 48);
      small_free(small_allocate(48), 48);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    failures += status == 0 ? 0 : 1;
    small_free(inherited, 48);
  }
  is_over = true;
  busy.join();
  CHECK_EQUAL(failures, 0);
}

}  // namespace
