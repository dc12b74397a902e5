// Whole transfers over every engine, and over an engine that fails on purpose: the bytes arrive, or an error of the
// right kind does.
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>

#include "base/bytes.h"
#include "csrc/io/fixture.h"

using namespace io_test;

namespace {

constexpr int64_t kBytes = 96 * kKiB;

struct Faulty {
  explicit Faulty(const Engine& engine)
      : executor(engine.executor), faulty(make_faulty_io_engine(engine.engine)), file(File::make_spill(folder.path())) {
    source.fill(kBytes, 7);
  }
  void write(const IoFaultPlan& plan) {
    faulty->arm(plan);
    transfer(*executor, faulty, {file.get(), IoKind::write, source.data(), 0, kBytes});
  }
  void read(const IoFaultPlan& plan) {
    faulty->arm(plan);
    std::memset(target.data(), 0, kBytes);
    transfer(*executor, faulty, {file.get(), IoKind::read, target.data(), 0, kBytes});
  }
  int64_t different_bits() const {
    int64_t count = 0;
    for (int64_t index = 0; index < kBytes; ++index)
      count += __builtin_popcount(static_cast<unsigned>(source.data()[index] ^ target.data()[index]));
    return count;
  }

  std::shared_ptr<Executor> executor;
  Folder folder;
  std::shared_ptr<FaultyIoEngine> faulty;
  std::shared_ptr<File> file;
  Block source{kBytes}, target{kBytes};
};

template <typename Call>
int spill_errno_of(Call call) {
  try {
    call();
  } catch (const SpillError& error) {
    const std::string text = error.what();
    CHECK(text.find("offset 0") != std::string::npos && text.find(std::to_string(kBytes)) != std::string::npos);
    return error.errno_value();
  }
  return 0;
}

}  // namespace

TEST(round_trips_at_every_alignment_and_size) {
  const Folder folder;
  for (const Engine& engine : all_engines())
    for (const DirectMode mode : {DirectMode::automatic, DirectMode::off}) {
      const auto file = File::make_spill(folder.path(), mode);
      for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{511}, int64_t{4096}, int64_t{4097}, kMiB, 8 * kMiB})
        for (const int64_t shift : {0, 1, 64})
          for (const int64_t offset : {0, 3, 4096}) {
            const Block source(bytes + 1, shift), target(bytes + 1, shift);
            source.fill(bytes, static_cast<uint64_t>(bytes + shift + offset));
            target.data()[bytes] = 0xa5;
            transfer(*engine.executor, engine.engine, {file.get(), IoKind::write, source.data(), offset, bytes});
            transfer(*engine.executor, engine.engine, {file.get(), IoKind::read, target.data(), offset, bytes});
            CHECK(is_same(source, target, bytes));
            CHECK_EQUAL(int{target.data()[bytes]}, 0xa5);
          }
    }
}

TEST(interrupted_again_and_short_attempts_are_completed) {
  for (const Engine& engine : all_engines()) {
    Faulty subject(engine);
    for (const IoFault fault : {IoFault::interrupted, IoFault::again, IoFault::short_transfer}) {
      subject.write({fault, 0, FaultSpan::once});
      CHECK_EQUAL(subject.faulty->attempt_count(), 2);
      subject.read({fault, 0, FaultSpan::once});
      CHECK_EQUAL(subject.faulty->attempt_count(), 2);
      CHECK_EQUAL(subject.different_bits(), 0);
    }
    // Halves down to one byte: most rests are aligned no more and go through the page cache.
    subject.write({IoFault::short_transfer, 0, FaultSpan::persistent});
    subject.read({IoFault::short_transfer, 0, FaultSpan::persistent});
    CHECK(subject.faulty->attempt_count() > 10);
    CHECK_EQUAL(subject.different_bits(), 0);
  }
}

TEST(retries_end_in_an_error) {
  for (const Engine& engine : all_engines()) {
    Faulty subject(engine);
    subject.write({});
    CHECK_EQUAL(spill_errno_of([&] { subject.write({IoFault::interrupted, 0, FaultSpan::persistent}); }), EINTR);
    CHECK_EQUAL(subject.faulty->attempt_count(), 100);
    CHECK_EQUAL(spill_errno_of([&] { subject.read({IoFault::again, 0, FaultSpan::persistent}); }), EAGAIN);
    CHECK_EQUAL(subject.faulty->attempt_count(), 100);
    CHECK_EQUAL(spill_errno_of([&] { subject.write({IoFault::truncated, 0, FaultSpan::persistent}); }), EIO);
  }
}

TEST(refusals_of_the_system_are_spill_errors) {
  for (const Engine& engine : all_engines()) {
    Faulty subject(engine);
    subject.write({});
    for (const FaultSpan span : {FaultSpan::once, FaultSpan::persistent}) {
      CHECK_EQUAL(spill_errno_of([&] { subject.write({IoFault::no_space, 0, span}); }), ENOSPC);
      CHECK_EQUAL(spill_errno_of([&] { subject.write({IoFault::io_error, 0, span}); }), EIO);
      CHECK_EQUAL(spill_errno_of([&] { subject.read({IoFault::io_error, 0, span}); }), EIO);
    }
    // The attempt with the chosen number and no other.
    const IoRequest request{subject.file.get(), IoKind::write, subject.source.data(), 0, kBytes};
    subject.faulty->arm({IoFault::io_error, 1, FaultSpan::once});
    transfer(*subject.executor, subject.faulty, request);
    CHECK_THROWS(transfer(*subject.executor, subject.faulty, request), SpillError);
    transfer(*subject.executor, subject.faulty, request);
    CHECK_EQUAL(subject.faulty->attempt_count(), 3);
    subject.read({});
    CHECK_EQUAL(subject.different_bits(), 0);
  }
}

TEST(end_of_file_is_corruption) {
  for (const Engine& engine : all_engines()) {
    Faulty subject(engine);
    subject.write({});
    CHECK_THROWS(subject.read({IoFault::truncated, 0, FaultSpan::once}), CorruptionError);
    for (const int64_t kept : {int64_t{0}, int64_t{100}, 64 * kKiB}) {
      subject.write({});
      subject.file->truncate(kept);
      CHECK_THROWS(subject.read({}), CorruptionError);
    }
  }
}

TEST(corruption_is_visible_and_leaves_the_source_whole) {
  for (const Engine& engine : all_engines()) {
    Faulty subject(engine);
    Block before(kBytes);
    before.fill(kBytes, 7);
    subject.write({});
    subject.read({IoFault::corrupt, 0, FaultSpan::once});
    CHECK_EQUAL(subject.different_bits(), 1);
    subject.read({});
    CHECK_EQUAL(subject.different_bits(), 0);
    subject.write({IoFault::corrupt, 0, FaultSpan::once});
    CHECK(is_same(before, subject.source, kBytes));
    subject.read({});
    CHECK_EQUAL(subject.different_bits(), 1);
  }
}

TEST(senseless_requests_are_refused_at_once) {
  const Folder folder;
  const auto file = File::make_spill(folder.path());
  const Engine engine = make_engine(IoEngineChoice::threads);
  const Block block(16);
  const auto refuse = [&](const IoRequest& request) {
    CHECK_THROWS(transfer_fully(engine.engine, request, [](std::exception_ptr) {}), InputError);
  };
  refuse({nullptr, IoKind::read, block.data(), 0, 16});
  refuse({file.get(), IoKind::read, nullptr, 0, 16});
  refuse({file.get(), IoKind::read, block.data(), -1, 16});
  refuse({file.get(), IoKind::read, block.data(), 0, -16});
  refuse({file.get(), IoKind::read, block.data(), INT64_MAX, 16});
}

TEST(full_disk_is_named_with_what_is_free) {
  if (::geteuid() != 0) SKIP("mounting a 4 MiB tmpfs needs root");
  const Folder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=4m,mode=0700") != 0)
    SKIP("mounting a tmpfs is denied here: " + std::string(std::strerror(errno)));
  const std::shared_ptr<void> unmount(nullptr, [&](void*) { ::umount2(folder.path().c_str(), MNT_DETACH); });
  for (const Engine& engine : all_engines()) {
    const auto file = File::make_spill(folder.path());
    const Block source(8 * kMiB), target(kMiB);
    source.fill(8 * kMiB, 3);
    std::string text;
    try {
      transfer(*engine.executor, engine.engine, {file.get(), IoKind::write, source.data(), 0, 8 * kMiB});
    } catch (const SpillError& error) {
      CHECK_EQUAL(error.errno_value(), ENOSPC);
      text = error.what();
    }
    CHECK(text.find(folder.path()) != std::string::npos && text.find("free") != std::string::npos);
    CHECK_THROWS(file->reserve(8 * kMiB), SpillError);
    // What arrived before is intact, and there is room again once the file is cut.
    transfer(*engine.executor, engine.engine, {file.get(), IoKind::read, target.data(), 0, kMiB});
    CHECK(is_same(source, target, kMiB));
    file->truncate(0);
    transfer(*engine.executor, engine.engine, {file.get(), IoKind::write, source.data(), 0, kMiB});
  }
}

TEST(a_fault_strikes_only_the_operation_it_was_meant_for_and_a_refusal_is_told) {
  for (const Engine& engine : all_engines()) {
    Faulty subject(engine);
    const IoFaultPlan reads{.fault = IoFault::io_error, .span = FaultSpan::persistent, .operation = IoOperation::read};
    subject.write(reads);
    CHECK_EQUAL(subject.faulty->attempt_count(), 0);
    CHECK_THROWS(subject.read(reads), SpillError);
    CHECK_THROWS(subject.write({.fault = IoFault::refused}), SpillError);
    subject.write({});
    subject.read({});
    CHECK_EQUAL(subject.different_bits(), 0);
  }
}
