// The rows of a store hold what the file holds, whatever the policy, the parts and the engine: checked after every
// step of sampled activity. A read that fails leaves nothing behind that looks resident, and the next step is right.
#include <cstring>
#include <fstream>
#include <random>
#include <vector>

#include "csrc/engine/rig.h"
#include "csrc/io/tensor_bytes.h"
#include "engine/row_store.h"
#include "io/checksum.h"

using namespace memsys;
using engine_test::pattern;
using io_test::Block;
using io_test::Folder;

namespace {

constexpr int64_t kRows = 40;
constexpr int64_t kPage = 4096;

// A bundle in a file, at an offset that may lie within a page, and what a store takes of each row.
struct Shape {
  int64_t stride_bytes = 2 * kPage, unit_bytes = 2 * kPage;
  std::vector<ByteRange> parts{{0, 2 * kPage}};
  int64_t phase_bytes = 0;
};

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all{
      {},
      {.unit_bytes = kPage, .parts = {{kPage, kPage}}},  // the down part alone
      {.stride_bytes = 3 * kPage, .unit_bytes = kPage, .parts = {{0, kPage}, {2 * kPage, kPage}}},  // no gate
      {.parts = {{0, 3000}, {3000, 3000}}},                                                         // without the pad
      {.parts = {{3000, 3000}}},
      {.parts = {{0, 2 * kPage}}, .phase_bytes = 72},  // no checksums lie on pages there
  };
  return all;
}

class Bed {
 public:
  explicit Bed(Shape shape, const RuntimeOptions& options = {}, VerifyMode verify = VerifyMode::first)
      : shape_(std::move(shape)), content_(pattern(kRows * shape_.stride_bytes, 7)), runtime(make_runtime(options)) {
    const int64_t bytes = kRows * shape_.stride_bytes;
    std::string json = "{\"b\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(bytes) + "],\"data_offsets\":[0," +
                       std::to_string(bytes) + "]}}";
    offset_bytes_ = kPage + shape_.phase_bytes;
    json.resize(static_cast<size_t>(offset_bytes_) - 8, ' ');
    path_ = folder_.path() + "/bundle.safetensors";
    std::ofstream stream(path_, std::ios::binary);
    stream << fixture::safetensors(json, 0);
    stream.write(reinterpret_cast<const char*>(content_.data()), bytes);
    stream.close();
    file = WeightFile::open(runtime, path_, DirectMode::automatic, verify);
    if (shape_.phase_bytes > 0) return;
    std::vector<uint32_t> values;
    for (int64_t at = 0; at < bytes; at += shape_.unit_bytes)
      values.push_back(crc32c(content_.data() + at, shape_.unit_bytes));
    file->set_checksums(offset_bytes_, bytes, shape_.unit_bytes, values);
  }

  RowStoreOptions options(std::unique_ptr<RowPolicy> policy, int64_t capacity = kRows) const {
    return {.reader = reader(),
            .file = file,
            .offset_bytes = offset_bytes_,
            .row_count = kRows,
            .stride_bytes = shape_.stride_bytes,
            .unit_bytes = shape_.unit_bytes,
            .parts = shape_.parts,
            .capacity_rows = capacity,
            .policy = std::move(policy)};
  }
  std::shared_ptr<RowReader> reader(int64_t budget_bytes = -1, int64_t slot_count = 4) const {
    return std::make_shared<RowReader>(RowReaderOptions{
        .runtime = runtime, .max_run_bytes = 8 * kPage, .slot_count = slot_count, .device_budget_bytes = budget_bytes});
  }

  // Every resident row holds the bytes of the neuron that is said to lie there.
  void check_rows(const RowStore& store) const {
    store.check_invariants();
    for (int64_t row = 0; row < store.resident_count(); ++row) {
      const char* found = store.matrix() + row * store.row_bytes();
      for (const ByteRange& part : shape_.parts) {
        const int64_t begin = store.neurons()[static_cast<size_t>(row)] * shape_.stride_bytes + part.offset_bytes;
        CHECK(std::memcmp(found, content_.data() + begin, static_cast<size_t>(part.size_bytes)) == 0);
        found += part.size_bytes;
      }
    }
  }
  void check_step(RowStore& store, const std::vector<int64_t>& wanted) const {
    std::vector<int64_t> rows(wanted.size(), -1);
    store.step(wanted, rows.data());
    check_rows(store);
    for (size_t at = 0; at < wanted.size(); ++at) {
      CHECK(rows[at] >= 0 && rows[at] < store.resident_count());
      CHECK_EQUAL(store.neurons()[static_cast<size_t>(rows[at])], wanted[at]);
    }
  }

 private:
  Folder folder_;
  const Shape shape_;
  const Block content_;
  int64_t offset_bytes_ = 0;
  std::string path_;

 public:
  const std::shared_ptr<Runtime> runtime;
  std::shared_ptr<WeightFile> file;
};

std::vector<int64_t> sample(std::mt19937_64& random, size_t most) {
  const uint64_t share = random() % 101;
  std::vector<int64_t> wanted;
  for (int64_t id = 0; id < kRows && wanted.size() < most; ++id)
    if (random() % 100 < share) wanted.push_back(id);
  return wanted;
}

std::unique_ptr<RowPolicy> window(int64_t set_count = 1) { return make_window_policy(kRows, set_count); }

std::vector<int64_t> all_rows() {
  std::vector<int64_t> all;
  for (int64_t id = 0; id < kRows; ++id) all.push_back(id);
  return all;
}

void check_walk(const Bed& bed, std::unique_ptr<RowPolicy> policy, uint64_t seed) {
  std::mt19937_64 random(seed);
  constexpr int64_t kCapacity = 24;
  const int64_t bytes_before = bed.file->read_bytes();
  RowStore store(bed.options(std::move(policy), kCapacity));
  for (int step = 0; step < 30; ++step) bed.check_step(store, sample(random, kCapacity));
  const RowStoreStats stats = store.stats();
  CHECK(stats.window.move_count <= stats.window.drop_count);
  CHECK_EQUAL(stats.wanted_bytes, stats.window.arrival_count * store.row_bytes());
  CHECK_EQUAL(bed.file->read_bytes() - bytes_before, stats.read_bytes);  // as the file itself counts
}

void check_walks(const RuntimeOptions& options) {
  for (const Shape& shape : shapes()) {
    const Bed bed(shape, options);
    const std::vector<int64_t> hot{1, 5, 6, 30};
    check_walk(bed, make_window_policy(kRows, 3), 1);
    check_walk(bed, make_window_policy(kRows, 1, hot), 2);
    check_walk(bed, make_window_policy(kRows, 2, hot), 3);
    check_walk(bed, make_lru_policy(kRows), 4);
  }
}

}  // namespace

TEST(row_store_holds_the_files_rows) {
  check_walks({.seed = {}, .io = {.choice = IoEngineChoice::threads}});
  check_walks({.seed = {}, .io = {.choice = IoEngineChoice::automatic}});
}

TEST(row_store_holds_the_files_rows_in_every_order) {
  for (uint64_t seed = 0; seed < schedules(20); ++seed) {
    const Bed bed(shapes()[seed % shapes().size()], {.seed = seed, .io = {}});
    check_walk(bed, make_window_policy(kRows, 2), seed);
  }
}

TEST(row_store_reads_only_what_is_missing_and_counts_it) {
  const Bed bed({.unit_bytes = kPage, .parts = {{kPage, kPage}}});
  RowStore store(bed.options(window(2)));
  bed.check_step(store, {1, 2, 20});
  RowStoreStats stats = store.stats();
  CHECK_EQUAL(stats.wanted_bytes, 3 * kPage);
  CHECK_EQUAL(stats.read_bytes, 3 * kPage);  // the gaps, the up parts, are more than the bound allows
  CHECK_EQUAL(stats.read_count, int64_t{3});
  bed.check_step(store, {1, 2, 20});
  bed.check_step(store, {2, 20, 21});
  stats = store.stats();
  CHECK_EQUAL(stats.wanted_bytes, 4 * kPage);
  CHECK_EQUAL(stats.read_count, int64_t{4});
  CHECK_EQUAL(stats.window.drop_count, int64_t{0});
  CHECK_EQUAL(bed.file->read_bytes(), stats.read_bytes);  // told by the file, too
}

TEST(row_store_joins_reads_within_the_bound) {
  const Bed bed({});
  RowStoreOptions options = bed.options(window());
  RowStore plain(bed.options(window()));
  options.amplification = 1.6;
  RowStore joined(std::move(options));
  const std::vector<int64_t> wanted{0, 1, 3, 7, 9};  // gaps of 1, 3 and 1 rows; five wanted
  bed.check_step(plain, wanted);
  bed.check_step(joined, wanted);
  CHECK_EQUAL(plain.stats().read_count, int64_t{3});  // 1.25 times five rows: one more row
  CHECK_EQUAL(plain.stats().read_bytes, 6 * 2 * kPage);
  CHECK_EQUAL(joined.stats().read_count, int64_t{2});
  CHECK_EQUAL(joined.stats().read_bytes, 7 * 2 * kPage);
}

TEST(row_store_keeps_the_bias_beside_its_row) {
  const Bed bed({});
  std::vector<float> bias;
  for (int64_t id = 0; id < kRows; ++id) bias.push_back(static_cast<float>(id) + 0.5F);
  RowStoreOptions options = bed.options(window(2), 20);
  options.bias = bias.data();
  options.bias_bytes = sizeof(float);
  RowStore store(std::move(options));
  std::mt19937_64 random(3);
  for (int step = 0; step < 30; ++step) {
    bed.check_step(store, sample(random, 20));
    for (int64_t row = 0; row < store.resident_count(); ++row)
      CHECK_EQUAL(reinterpret_cast<const float*>(store.bias())[row],
                  bias[static_cast<size_t>(store.neurons()[static_cast<size_t>(row)])]);
  }
}

TEST(row_store_counts_its_bytes_and_keeps_to_the_budget) {
  const Bed bed({});
  const auto reader = bed.reader();
  const int64_t staging_bytes = reader->budget()->used_bytes();
  CHECK_EQUAL(staging_bytes, 4 * 10 * kPage);
  {
    RowStoreOptions options = bed.options(window(), 10);
    options.reader = reader;
    const RowStore store(std::move(options));
    CHECK_EQUAL(reader->budget()->used_bytes(), staging_bytes + 10 * 2 * kPage);
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(store.matrix()) % kPage, uintptr_t{0});
  }
  CHECK_EQUAL(reader->budget()->used_bytes(), staging_bytes);
  RowStoreOptions options = bed.options(window(), 10);
  options.reader = bed.reader(staging_bytes + 10 * 2 * kPage - 1);
  CHECK_THROWS(RowStore(std::move(options)), BudgetError);
  CHECK_THROWS(bed.reader(staging_bytes - 1), BudgetError);
}

TEST(row_store_refuses_more_rows_than_fit_and_stays_as_it_was) {
  const Bed bed({});
  RowStore store(bed.options(window(), 3));
  bed.check_step(store, {4, 5});
  std::vector<int64_t> rows(4);
  CHECK_THROWS(store.step(std::vector<int64_t>{1, 2, 3, 4}, rows.data()), BudgetError);
  CHECK_THROWS(store.step(std::vector<int64_t>{2, 1}, rows.data()), InputError);
  CHECK_THROWS(store.step(std::vector<int64_t>{kRows}, rows.data()), InputError);
  CHECK_EQUAL(store.resident_count(), int64_t{2});
  bed.check_rows(store);
  const int64_t read_count = store.stats().read_count;
  bed.check_step(store, {4, 5});
  CHECK_EQUAL(store.stats().read_count, read_count);
}

// The k-th attempt of a step fails, for every k; the first reads of the store must not be left looking like rows.
template <class Error>
void check_faults(IoFault fault, FaultSpan span) {
  for (const Shape& shape : shapes()) {
    if (fault == IoFault::corrupt && shape.phase_bytes > 0) continue;
    for (int64_t at = 0;; ++at) {
      const Bed bed(shape, {.seed = {}, .io = {.choice = IoEngineChoice::threads}, .faults = FaultSeam::faulty},
                    VerifyMode::always);
      RowStore store(bed.options(window(2)));
      bed.check_step(store, {0, 3, 9});
      const std::vector<int64_t> wanted{0, 5, 9, 14, 20, 21, 33, 39};
      std::vector<int64_t> rows(wanted.size());
      bed.runtime->faulty_io->arm({.fault = fault, .at = at, .span = span});
      bool has_failed = false;
      try {
        store.step(wanted, rows.data());
      } catch (const Error&) {
        has_failed = true;
      }
      const int64_t attempt_count = bed.runtime->faulty_io->attempt_count();
      bed.runtime->faulty_io->arm({});
      CHECK_EQUAL(has_failed, at < attempt_count);
      if (!has_failed) {
        CHECK(at >= 4);  // there were several reads to fail
        break;
      }
      CHECK_EQUAL(store.resident_count(), int64_t{0});
      CHECK_EQUAL(store.stats().failure_count, int64_t{1});
      store.check_invariants();
      bed.check_step(store, wanted);
      bed.check_step(store, {1, 2});
    }
  }
}

TEST(row_store_is_empty_after_a_failed_read_and_right_after_the_next) {
  check_faults<SpillError>(IoFault::io_error, FaultSpan::once);
  check_faults<CorruptionError>(IoFault::truncated, FaultSpan::once);
  check_faults<CorruptionError>(IoFault::corrupt, FaultSpan::once);
  check_faults<SpillError>(IoFault::io_error, FaultSpan::persistent);
}

TEST(row_store_completes_short_and_interrupted_reads) {
  for (const IoFault fault : {IoFault::short_transfer, IoFault::interrupted, IoFault::again})
    for (int64_t at = 0; at < 8; ++at) {
      const Bed bed({}, {.seed = {}, .io = {.choice = IoEngineChoice::threads}, .faults = FaultSeam::faulty});
      RowStore store(bed.options(window()));
      bed.runtime->faulty_io->arm({.fault = fault, .at = at, .span = FaultSpan::once});
      bed.check_step(store, {0, 5, 9, 14, 20, 21, 33, 39});
    }
}

TEST(row_store_reads_more_runs_than_it_has_slots) {
  const Bed bed({.unit_bytes = kPage, .parts = {{kPage, kPage}}});
  RowStoreOptions options = bed.options(window());
  options.reader = bed.reader(-1, 1);
  options.amplification = 1;
  RowStore store(std::move(options));
  bed.check_step(store, all_rows());
  CHECK_EQUAL(store.stats().read_count, kRows);
}

TEST(row_store_stays_until_its_reads_are_done_though_a_foreign_task_fails) {
  for (uint64_t seed = 0; seed < schedules(20); ++seed) {
    const Bed bed({}, {.seed = seed, .io = {}});
    RowStore store(bed.options(window()));
    const QueueId foreign = bed.runtime->executor->create_queue("foreign");
    bed.runtime->executor->post(foreign, [] { throw std::runtime_error("foreign"); });
    std::vector<int64_t> rows(kRows);
    try {
      store.step(all_rows(), rows.data());
      CHECK_THROWS(bed.runtime->executor->drain(), std::runtime_error);
    } catch (const std::runtime_error&) {
      CHECK_EQUAL(store.resident_count(), int64_t{0});
    }
    bed.check_step(store, all_rows());
    bed.runtime->executor->destroy_queue(foreign);
  }
}

TEST(row_store_refuses_nonsense) {
  const Bed bed({});
  const auto make = [&](auto change) {
    RowStoreOptions options = bed.options(window());
    change(options);
    return RowStore(std::move(options)).row_bytes();
  };
  CHECK_EQUAL(make([](RowStoreOptions&) {}), 2 * kPage);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.unit_bytes = 3000; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.unit_bytes = 0; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.parts.clear(); }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.parts = {{0, 3 * kPage}}; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.parts = {{100, 100}, {150, 100}}; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.offset_bytes += kPage; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.offset_bytes = -kPage; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.capacity_rows = 0; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) { one.bias_bytes = 4; }), InputError);
  CHECK_THROWS(make([](RowStoreOptions& one) {
                 one.row_count = one.capacity_rows = 1;
                 one.stride_bytes = one.unit_bytes = 20 * kPage;  // more than the reader's staging takes at once
                 one.policy = make_lru_policy(1);
               }),
               InputError);
}
