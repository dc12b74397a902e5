// See row_reader.h.
#include "engine/row_reader.h"

#include <atomic>
#include <chrono>
#include <string>

#include "base/bytes.h"
#include "base/outlast.h"
#include "memory/limited_resource.h"
#include "memory/resources.h"

namespace memsys {
namespace {

constexpr int64_t kPageBytes = 4096;

using Clock = std::chrono::steady_clock;
int64_t us_since(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
}

}  // namespace

// The reads of one call. Shared with their tasks, which outlive nothing: read() returns after the last has ended.
struct RowReader::Flight {
  struct Slot {
    size_t run = 0;
    bool is_busy = false;
    std::atomic<bool> has_ended{false};
    std::exception_ptr error;  // written before has_ended
  };
  explicit Flight(size_t slot_count) : slots(slot_count) {}
  void end(size_t slot, std::exception_ptr error) {
    slots[slot].error = std::move(error);
    slots[slot].has_ended = true;
    ended_count.fetch_add(1);
  }

  std::vector<Slot> slots;
  std::atomic<int64_t> ended_count{0};
};

RowReader::RowReader(const RowReaderOptions& options)
    : runtime_(options.runtime),
      max_run_bytes_(options.max_run_bytes),
      // A run that begins and ends within pages takes one more on either side.
      slot_bytes_(align_up(options.max_run_bytes, kPageBytes) + 2 * kPageBytes),
      slot_count_(options.slot_count),
      budget_(std::make_shared<ByteBudget>("device_budget", options.device_budget_bytes)),
      memory_(make_limited_resource(runtime_->with_faults(make_mmap_resource()), budget_)) {
  MEMSYS_EXPECT(max_run_bytes_ > 0 && slot_count_ >= 1 && slot_count_ <= 4096, InputError,
                std::to_string(slot_count_) + " reads in flight of " + std::to_string(max_run_bytes_) +
                    " bytes each were asked for; give 1 to 4096 of more than 0 bytes");
  staging_ = Buffer(memory_, checked_multiply(slot_bytes_, slot_count_));
}

char* RowReader::slot_at(size_t slot) const {
  return static_cast<char*>(staging_.data()) + static_cast<int64_t>(slot) * slot_bytes_;
}

void RowReader::start(WeightFile& file, const ReadRun& run, const std::shared_ptr<Flight>& flight, size_t slot) {
  const auto finish = [flight, slot, &executor = *runtime_->executor](std::exception_ptr error) {
    flight->end(slot, std::move(error));
    executor.notify();
  };
  try {
    MEMSYS_EXPECT(WeightFile::room_bytes(run.offset_bytes, run.size_bytes) <= slot_bytes_, InputError,
                  "a row read of " + format_bytes(run.size_bytes) + " was asked for, and the staging holds " +
                      format_bytes(max_run_bytes_) + " a read; make the reader with a larger max_run_bytes");
    file.start_read(run.offset_bytes, run.size_bytes, slot_at(slot), finish);
  } catch (...) {
    flight->end(slot, std::current_exception());
  }
}

RowReader::Times RowReader::read(WeightFile& file, std::span<const ReadRun> runs,
                                 const std::function<void(size_t, const char*)>& land) {
  const std::lock_guard hold(mutex_);
  const auto flight = std::make_shared<Flight>(static_cast<size_t>(slot_count_));
  Times times;
  std::exception_ptr error;
  size_t next_run = 0;
  int64_t in_flight_count = 0, taken_count = 0;
  while (in_flight_count > 0 || (!error && next_run < runs.size())) {
    for (size_t slot = 0; slot < flight->slots.size() && !error && next_run < runs.size(); ++slot) {
      if (flight->slots[slot].is_busy) continue;
      flight->slots[slot].is_busy = true;
      flight->slots[slot].run = next_run;
      ++in_flight_count;
      start(file, runs[next_run++], flight, slot);
    }
    const auto wait_begin = Clock::now();
    const auto foreign = outlast(*runtime_->executor, [&] { return flight->ended_count.load() > taken_count; });
    times.wait_us += us_since(wait_begin);
    if (!error) error = foreign;
    const auto land_begin = Clock::now();
    for (size_t at = 0; at < flight->slots.size(); ++at) {
      Flight::Slot& slot = flight->slots[at];
      if (!slot.is_busy || !slot.has_ended) continue;
      if (!error) error = slot.error;
      try {
        if (!error) land(slot.run, slot_at(at) + WeightFile::phase_of(runs[slot.run].offset_bytes));
      } catch (...) {
        error = std::current_exception();
      }
      slot.is_busy = false;
      slot.has_ended = false;
      --in_flight_count;
      ++taken_count;
    }
    times.land_us += us_since(land_begin);
  }
  if (error) std::rethrow_exception(error);
  return times;
}

}  // namespace memsys
