// Weights read from a file: the right bytes at any offset, on every engine, past the page cache; a wrong byte, a
// changed file or a failing disk is a typed error that says where, and nothing wrong is ever taken for right.
#include <filesystem>

#include "csrc/engine/weights.h"
#include "csrc/io/cached_pages.h"
#include "memory/buffer.h"
#include "memory/resources.h"

using namespace engine_test;

namespace {

constexpr int64_t kPage = kFilePageBytes;
constexpr int64_t kUnit = 64 * kKiB;
const std::vector<int64_t> kSizes = {100, 5 * kMiB + 777, kPage, 3 * kUnit, 70'001, 1};

// start_read and the wait for it; returns what the caller would be told.
std::exception_ptr read_pages(const std::shared_ptr<Runtime>& runtime, WeightFile& file, const ByteSpan& span,
                              void* target) {
  const auto ticket = std::make_shared<Ticket>();
  file.start_read(span.begin_bytes, span.size_bytes(), target, [ticket, runtime](std::exception_ptr error) {
    CHECK(!ticket->is_done());
    ticket->finish(std::move(error));
    runtime->executor->notify();
  });
  runtime->executor->wait_until([&] { return ticket->is_done(); });
  runtime->executor->drain();
  return ticket->error();
}

template <class Error>
std::string message_of(std::exception_ptr error) {
  CHECK(error != nullptr);
  try {
    std::rethrow_exception(std::move(error));
  } catch (const Error& told) {
    return told.what();
  }
}

void expect_words(const std::string& message, const std::vector<std::string>& words) {
  for (const std::string& word : words)
    if (message.find(word) == std::string::npos)
      check::fail(__FILE__, __LINE__, "'" + word + "' is missing in: " + message);
}

// Room for a tensor of `weights`, with a guard after it.
class Room {
 public:
  Room(const Weights& weights, size_t tensor)
      : span_(weights.tensors[tensor]),
        bytes_(WeightFile::room_bytes(span_.begin_bytes, span_.size_bytes())),
        block_(bytes_ + kPage) {
    std::memset(block_.data(), 0xA5, static_cast<size_t>(bytes_ + kPage));
  }
  unsigned char* target() const { return block_.data(); }
  unsigned char* data() const { return block_.data() + WeightFile::phase_of(span_.begin_bytes); }
  const ByteSpan& span() const { return span_; }
  bool is_guard_whole() const {
    return std::all_of(block_.data() + bytes_, block_.data() + bytes_ + kPage, [](auto byte) { return byte == 0xA5; });
  }

 private:
  ByteSpan span_;
  int64_t bytes_;
  Block block_;
};

void check_all(const std::shared_ptr<Runtime>& runtime, WeightFile& file, const Weights& weights) {
  for (size_t tensor = 0; tensor < weights.tensors.size(); ++tensor) {
    const Room room(weights, tensor);
    CHECK(read_pages(runtime, file, room.span(), room.target()) == nullptr);
    CHECK(weights.is_at(tensor, room.data()));
    CHECK(room.is_guard_whole());
    const int64_t bytes = room.span().size_bytes();
    const Block exact(bytes + 64, 1);
    std::memset(exact.data(), 0xA5, static_cast<size_t>(bytes + 64));
    file.read(room.span().begin_bytes, bytes, exact.data());
    CHECK(weights.is_at(tensor, exact.data()));
    CHECK_EQUAL(int{exact.data()[bytes]}, 0xA5);
  }
}

}  // namespace

TEST(weights_are_read_as_they_are) {
  const Folder folder;
  for (const Layout layout : {Layout::packed, Layout::plain}) {
    const Weights weights = write_weights(folder, kSizes, layout);
    for (const auto& runtime : all_runtimes())
      for (const DirectMode direct : {DirectMode::automatic, DirectMode::off})
        for (const VerifyMode verify : {VerifyMode::first, VerifyMode::always, VerifyMode::never}) {
          const auto file = open_weights(runtime, weights, verify, direct);
          if (layout == Layout::packed) give_checksums(*file, weights, kUnit);
          check_all(runtime, *file, weights);
          CHECK(file->read_bytes() >= 2 * (5 * kMiB));
          CHECK(file->read_count() >= 2 * 6);
        }
  }
}

TEST(weights_do_not_stay_in_the_page_cache) {
  const Folder folder;
  if (io_test::is_memory(folder.path())) SKIP("files in " + folder.path() + " are memory themselves");
  const Weights weights = write_weights(folder, kSizes, Layout::plain);
  File::open(weights.path, FileMode::read_write)->sync();
  for (const DirectMode direct : {DirectMode::automatic, DirectMode::off}) {
    const auto runtime = make_runtime({});
    const auto file = open_weights(runtime, weights, VerifyMode::first, direct);
    CHECK_EQUAL(io_test::cached_page_count(weights.path), 0);
    check_all(runtime, *file, weights);
    CHECK_EQUAL(io_test::cached_page_count(weights.path), 0);
  }
}

TEST(a_flipped_bit_is_told_wherever_it_is) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  for (const auto& runtime : all_runtimes())
    for (const int64_t at : {int64_t{0}, kUnit - 1, kUnit, 2 * kMiB, 5 * kMiB, 5 * kMiB + 776}) {
      Weights broken = make_weights(weights.path, kSizes, Layout::packed);
      broken.bytes[static_cast<size_t>(broken.tensors[1].begin_bytes + at)] ^= 0x40;
      store(broken);
      const auto file = open_weights(runtime, broken);
      give_checksums(*file, weights, kUnit);
      const Room room(broken, 1);
      for (int round = 0; round < 2; ++round) {  // what was found wrong once is not taken for right later
        const std::string message = message_of<CorruptionError>(read_pages(runtime, *file, room.span(), room.target()));
        const int64_t unit = broken.tensors[1].begin_bytes + at / kUnit * kUnit;
        expect_words(message, {weights.path, "tensor 't1'", "byte " + std::to_string(unit), "wanted", "found",
                               std::to_string(checksums_of(weights, 1, kUnit)[static_cast<size_t>(at / kUnit)])});
        CHECK_THROWS(file->read(room.span().begin_bytes, room.span().size_bytes(), room.data()), CorruptionError);
      }
      const Room other(broken, 3);
      CHECK(read_pages(runtime, *file, other.span(), other.target()) == nullptr);
    }
}

// A bit that the reader itself flips: the units that were right before are right, those not yet seen are told.
TEST(verify_modes_check_what_they_promise) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  for (const VerifyMode verify : {VerifyMode::first, VerifyMode::always, VerifyMode::never})
    for (const auto& runtime : all_runtimes(FaultSeam::faulty)) {
      const auto file = open_weights(runtime, weights, verify);
      give_checksums(*file, weights, kUnit);
      const Room room(weights, 3);
      const auto corrupt_read = [&] {
        runtime->faulty_io->arm({.fault = IoFault::corrupt, .at = 0});
        const auto error = read_pages(runtime, *file, room.span(), room.target());
        runtime->faulty_io->arm({});
        return error;
      };
      CHECK_EQUAL(corrupt_read() == nullptr, verify == VerifyMode::never);
      CHECK(read_pages(runtime, *file, room.span(), room.target()) == nullptr);
      CHECK(weights.is_at(3, room.data()));
      CHECK_EQUAL(corrupt_read() == nullptr, verify != VerifyMode::always);
    }
}

TEST(units_are_checked_only_where_the_range_holds_them_whole) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  const auto runtime = make_runtime({});
  const auto file = open_weights(runtime, weights);
  const ByteSpan span = weights.tensors[3];
  std::vector<uint32_t> values = checksums_of(weights, 3, kUnit);
  values[1] ^= 1;
  file->set_checksums(span.begin_bytes, span.size_bytes(), kUnit, values);
  const Room room(weights, 3);
  const int64_t begin = span.begin_bytes;
  CHECK(read_pages(runtime, *file, {begin, begin + kUnit}, room.target()) == nullptr);
  CHECK(read_pages(runtime, *file, {begin + kUnit, begin + 2 * kUnit - 1}, room.target()) == nullptr);
  CHECK(read_pages(runtime, *file, {begin + kUnit, begin + 2 * kUnit}, room.target()) != nullptr);
  // A blocking read has memory of its own, and widens the range to whole units.
  file->read(begin, kUnit, room.target());
  CHECK_THROWS(file->read(begin + kUnit + 5, 1, room.target()), CorruptionError);
  CHECK_THROWS(file->read(begin + kUnit - 1, 2, room.target()), CorruptionError);
}

TEST(a_file_that_changes_is_told) {
  const Folder folder;
  using Change = std::function<void(const Weights&)>;
  const std::vector<std::pair<Change, std::string>> changes = {
      {[](const Weights& one) { std::filesystem::resize_file(one.path, one.bytes.size() - 1); }, "its size went from"},
      {[](const Weights& one) { std::filesystem::resize_file(one.path, one.bytes.size() + 1); }, "its size went from"},
      {[](const Weights& one) {
         store(one);
         std::filesystem::last_write_time(one.path,
                                          std::filesystem::file_time_type::clock::now() + std::chrono::seconds(5));
       },
       "it was written to"},
      {[](const Weights& one) {
         std::filesystem::copy_file(one.path, one.path + ".new");
         std::filesystem::rename(one.path + ".new", one.path);
       },
       "another file took its name"}};
  for (const auto& [change, words] : changes)
    for (const auto& runtime : all_runtimes()) {
      const Weights weights = write_weights(folder, kSizes, Layout::packed);
      const auto file = open_weights(runtime, weights);
      const Room room(weights, 3);
      CHECK(read_pages(runtime, *file, room.span(), room.target()) == nullptr);
      change(weights);
      std::memset(room.target(), 0xA5, 100);
      expect_words(message_of<CorruptionError>(read_pages(runtime, *file, room.span(), room.target())),
                   {weights.path, "tensor 't3'", "byte " + std::to_string(room.span().begin_bytes), words});
      CHECK_EQUAL(int{room.target()[0]}, 0xA5);  // it was not even read
      CHECK_THROWS(file->read(room.span().begin_bytes, 10, room.target()), CorruptionError);
    }
}

TEST(a_file_whose_name_goes_is_still_the_same_file) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  const auto runtime = make_runtime({});
  const auto file = open_weights(runtime, weights);
  std::filesystem::remove(weights.path);
  check_all(runtime, *file, weights);
}

// A write that comes while the pieces are under way: there may be no checksum to notice it.
TEST(a_file_that_changes_during_a_read_is_told) {
  const Folder folder;
  int told_count = 0;
  for (uint64_t seed = 0; seed < schedules(20); ++seed) {
    const Weights weights = write_weights(folder, kSizes, Layout::plain);
    const auto runtime = make_runtime({.seed = seed, .io = {}});
    const auto file = open_weights(runtime, weights);
    const Room room(weights, 1);
    const QueueId other = runtime->executor->create_queue("other");
    const auto now = std::filesystem::file_time_type::clock::now();
    runtime->executor->post(other,
                            [&] { std::filesystem::last_write_time(weights.path, now + std::chrono::hours(1)); });
    // Before the first task ran nothing had changed: what is told here was seen at the end of the read.
    if (read_pages(runtime, *file, room.span(), room.target()) != nullptr)
      ++told_count;
    else
      CHECK(weights.is_at(1, room.data()));
    runtime->executor->drain();
    CHECK(read_pages(runtime, *file, room.span(), room.target()) != nullptr);
    runtime->executor->destroy_queue(other);
  }
  CHECK(told_count > 0);
}

TEST(faults_of_the_disk_are_completed_or_told) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  for (const auto& runtime : all_runtimes(FaultSeam::faulty))
    for (const IoFault fault : {IoFault::io_error, IoFault::truncated, IoFault::corrupt, IoFault::interrupted,
                                IoFault::again, IoFault::short_transfer})
      for (int64_t at = 0; at < 4; ++at)
        for (const FaultSpan span : {FaultSpan::once, FaultSpan::persistent}) {
          if (span == FaultSpan::persistent && fault == IoFault::short_transfer) continue;  // one byte at a time
          const auto file = open_weights(runtime, weights);
          give_checksums(*file, weights, kUnit);
          const Room room(weights, 1);
          runtime->faulty_io->arm({.fault = fault, .at = at, .span = span});
          const auto error = read_pages(runtime, *file, room.span(), room.target());
          const bool struck = runtime->faulty_io->attempt_count() > at;
          runtime->faulty_io->arm({});
          const bool may_retry = fault == IoFault::interrupted || fault == IoFault::again;
          const bool is_told =
              struck && fault != IoFault::short_transfer && (!may_retry || span == FaultSpan::persistent);
          CHECK_EQUAL(error != nullptr, is_told);
          if (is_told) {
            const bool is_data = fault == IoFault::truncated || fault == IoFault::corrupt;
            const std::string message = is_data ? message_of<CorruptionError>(error) : message_of<SpillError>(error);
            expect_words(message, {weights.path, "tensor 't1'", "byte "});
          } else {
            CHECK(weights.is_at(1, room.data()));
          }
          CHECK(read_pages(runtime, *file, room.span(), room.target()) == nullptr);
          CHECK(weights.is_at(1, room.data()));
        }
}

TEST(checksums_that_make_no_sense_are_refused) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  const auto file = open_weights(make_runtime({}), weights);
  const int64_t begin = weights.tensors[3].begin_bytes, bytes = 3 * kUnit;
  CHECK_THROWS(file->set_checksums(begin, bytes, kUnit, {1, 2}), InputError);
  CHECK_THROWS(file->set_checksums(begin, bytes, kUnit, {1, 2, 3, 4}), InputError);
  CHECK_THROWS(file->set_checksums(begin + 1, bytes, kUnit, {1, 2, 3}), InputError);
  CHECK_THROWS(file->set_checksums(begin, bytes, 1000, std::vector<uint32_t>(197)), InputError);
  CHECK_THROWS(file->set_checksums(begin, bytes, 0, {}), InputError);
  CHECK_THROWS(file->set_checksums(begin, int64_t{1} << 62, kUnit, {}), InputError);
  file->set_checksums(begin, bytes, kUnit, {1, 2, 3});
  CHECK_THROWS(file->set_checksums(begin, bytes, kUnit, {1, 2, 3}), InputError);
  CHECK_THROWS(file->set_checksums(begin + 2 * kUnit, kPage, kPage, {1}), InputError);
  CHECK_THROWS(file->set_checksums(begin - kPage, 2 * kPage, kPage, {1, 1}), InputError);
}

TEST(ranges_that_are_not_in_the_file_are_refused) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  const auto file = open_weights(make_runtime({}), weights);
  const auto end = static_cast<int64_t>(weights.bytes.size());
  const Block room(2 * kPage);
  const auto start = [&](int64_t offset, int64_t bytes, void* target) {
    file->start_read(offset, bytes, target, [](std::exception_ptr) { std::abort(); });
  };
  CHECK_THROWS(start(end - 1, 2, room.data()), InputError);
  CHECK_THROWS(start(-1, 1, room.data()), InputError);
  CHECK_THROWS(start(1, std::numeric_limits<int64_t>::max(), room.data()), InputError);
  CHECK_THROWS(start(0, 1, room.data() + 64), InputError);
  CHECK_THROWS(file->read(end, 1, room.data()), InputError);
  file->read(end, 0, nullptr);
  CHECK_THROWS(open_weights(make_runtime({}), Weights{folder.path() + "/none", {}, {}}), SpillError);
}

// The last piece lets go of file and runtime on whatever thread it ends.
TEST(a_file_may_be_dropped_while_it_is_read) {
  const Folder folder;
  const Weights weights = write_weights(folder, kSizes, Layout::packed);
  for (int round = 0; round < 20; ++round) {
    const Room room(weights, 1);
    std::atomic<bool> is_done{false};
    const auto runtime = make_runtime({.seed = {}, .io = {.choice = IoEngineChoice::threads}});
    open_weights(runtime, weights)
        ->start_read(room.span().begin_bytes, room.span().size_bytes(), room.target(),
                     [&](std::exception_ptr error) { is_done = error == nullptr; });
    runtime->executor->drain();
    CHECK(is_done);
    CHECK(weights.is_at(1, room.data()));
  }
}
