// The spill file's ranges: reused, grown in slabs, and bounded by the disk budget to the byte.
#include <set>
#include <thread>
#include <vector>

#include "csrc/io/fixture.h"
#include "engine/spill_space.h"

using namespace memsys;
using io_test::Folder;

namespace {

constexpr int64_t kSlab = SpillSpace::kSlabBytes, kPage = SpillSpace::kRangeAlignment;

struct Spill {
  explicit Spill(int64_t limit_bytes = -1)
      : budget(std::make_shared<ByteBudget>("disk_budget", limit_bytes)),
        space(std::make_shared<SpillSpace>(folder.path(), budget, DirectMode::automatic)) {}
  Folder folder;
  std::shared_ptr<ByteBudget> budget;
  std::shared_ptr<SpillSpace> space;
};

}  // namespace

TEST(no_file_is_made_before_its_first_use) {
  const auto budget = std::make_shared<ByteBudget>("disk_budget", -1);
  SpillSpace space("/nowhere/to/be/found", budget, DirectMode::automatic);
  CHECK_THROWS(space.allocate(1), SpillError);
  CHECK_EQUAL(budget->used_bytes(), 0);
}

TEST(ranges_are_reused_before_the_file_grows) {
  Spill spill;
  const int64_t first = spill.space->allocate(10 * kPage);
  const int64_t second = spill.space->allocate(1);
  CHECK(second >= first + 10 * kPage);
  spill.space->free(first);
  CHECK_EQUAL(spill.space->allocate(10 * kPage), first);
  CHECK_EQUAL(spill.space->reserved_bytes(), kSlab);
  CHECK_EQUAL(spill.budget->used_bytes(), kSlab);
  CHECK_EQUAL(spill.space->used_bytes(), 11 * kPage);
}

TEST(the_file_grows_by_slabs_and_by_larger_ranges) {
  Spill spill;
  std::set<int64_t> offsets;
  for (int count = 0; count < 5; ++count) CHECK(offsets.insert(spill.space->allocate(kSlab / 2)).second);
  CHECK_EQUAL(spill.space->reserved_bytes(), 3 * kSlab);
  spill.space->allocate(2 * kSlab + 1);
  CHECK_EQUAL(spill.space->reserved_bytes(), 5 * kSlab + kPage);
  CHECK(spill.space->file()->size() >= 5 * kSlab + kPage);
}

TEST(a_budget_below_a_slab_is_used_to_its_last_page) {
  Spill spill(3 * kPage);
  std::vector<int64_t> offsets;
  for (int count = 0; count < 3; ++count) offsets.push_back(spill.space->allocate(kPage));
  CHECK_THROWS(spill.space->allocate(1), BudgetError);
  CHECK_EQUAL(spill.budget->used_bytes(), 3 * kPage);
  CHECK_EQUAL(spill.space->used_bytes(), 3 * kPage);
  spill.space->free(offsets[1]);
  CHECK_EQUAL(spill.space->allocate(kPage - 1), offsets[1]);
  spill.space.reset();
  CHECK_EQUAL(spill.budget->used_bytes(), 0);
}

TEST(threads_never_get_the_same_range) {
  Spill spill;
  std::vector<std::vector<int64_t>> offsets(4);
  std::vector<std::thread> threads;
  for (auto& mine : offsets)
    threads.emplace_back([&spill, &mine] {
      for (int count = 0; count < 50; ++count) mine.push_back(spill.space->allocate(kSlab / 40));
    });
  for (std::thread& thread : threads) thread.join();
  std::set<int64_t> all;
  for (const auto& mine : offsets) all.insert(mine.begin(), mine.end());
  CHECK_EQUAL(static_cast<int64_t>(all.size()), 200);
  for (const int64_t offset : all) spill.space->free(offset);
  CHECK_EQUAL(spill.space->used_bytes(), 0);
}
