// See row_store.h.
#include "engine/row_store.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "base/bytes.h"

namespace memsys {
namespace {

constexpr int64_t kPageBytes = 4096;

using Clock = std::chrono::steady_clock;
int64_t us_since(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
}

const RowStoreOptions& checked(const RowStoreOptions& options) {
  const int64_t unit = options.unit_bytes, stride = options.stride_bytes;
  MEMSYS_EXPECT(unit > 0 && stride > 0 && stride % unit == 0, InputError,
                "rows of " + std::to_string(stride) + " bytes in units of " + std::to_string(unit) +
                    " were asked for; a row is a whole number of units");
  MEMSYS_EXPECT(options.offset_bytes >= 0 && options.row_count >= 1 && !options.parts.empty(), InputError,
                std::to_string(options.parts.size()) + " parts of " + std::to_string(options.row_count) +
                    " rows at offset " + std::to_string(options.offset_bytes) + " were asked for; give 1 or more");
  MEMSYS_EXPECT((options.bias == nullptr) == (options.bias_bytes == 0) && options.bias_bytes >= 0, InputError,
                "a bias needs memory and a size, or neither");
  int64_t end = 0;
  for (const ByteRange& part : options.parts) {
    MEMSYS_EXPECT(
        part.offset_bytes >= end && part.size_bytes > 0 && part.size_bytes <= stride - part.offset_bytes, InputError,
        "a part at byte " + std::to_string(part.offset_bytes) + " of " + std::to_string(part.size_bytes) +
            " bytes was asked for; parts ascend, are disjoint, and lie within a row of " + std::to_string(stride));
    end = part.offset_bytes + part.size_bytes;
  }
  const int64_t bytes = checked_add(options.offset_bytes, checked_multiply(options.row_count, stride));
  const int64_t file_bytes = options.file->header().file_bytes;
  MEMSYS_EXPECT(bytes <= file_bytes, InputError,
                "rows up to byte " + std::to_string(bytes) + " were asked for, and '" + options.file->header().path +
                    "' has " + std::to_string(file_bytes) + "; take the numbers from the file's own header");
  return options;
}

int64_t sum_of(const std::vector<ByteRange>& parts) {
  int64_t bytes = 0;
  for (const ByteRange& part : parts) bytes += part.size_bytes;
  return bytes;
}

}  // namespace

RowStore::RowStore(RowStoreOptions options)
    : options_(std::move(options)),
      row_bytes_(sum_of(checked(options_).parts)),
      window_(options_.row_count, options_.capacity_rows, std::move(options_.policy)) {
  plan_copies();
  const auto rooms = [&](int64_t row_bytes) {
    return Buffer(options_.reader->memory(), align_up(checked_multiply(options_.capacity_rows, row_bytes), kPageBytes));
  };
  matrix_ = rooms(row_bytes_);
  if (options_.bias != nullptr) bias_ = rooms(options_.bias_bytes);
}

// Widens each part to whole units, joins what then touches, and notes where each part lies in what is read.
void RowStore::plan_copies() {
  int64_t target_bytes = 0;
  for (const ByteRange& part : options_.parts) {
    const int64_t begin = part.offset_bytes / options_.unit_bytes * options_.unit_bytes;
    const int64_t end =
        (part.offset_bytes + part.size_bytes + options_.unit_bytes - 1) / options_.unit_bytes * options_.unit_bytes;
    if (!ranges_.empty() && begin <= ranges_.back().offset_bytes + ranges_.back().size_bytes)
      ranges_.back().size_bytes = end - ranges_.back().offset_bytes;
    else
      ranges_.push_back({begin, end - begin});
    copies_.push_back(
        {ranges_.size() - 1, part.offset_bytes - ranges_.back().offset_bytes, target_bytes, part.size_bytes});
    target_bytes += part.size_bytes;
  }
  for (const ByteRange& range : ranges_)
    MEMSYS_EXPECT(range.size_bytes <= options_.reader->max_run_bytes(), InputError,
                  "a row is read in pieces of " + format_bytes(range.size_bytes) + ", and the reader takes " +
                      format_bytes(options_.reader->max_run_bytes()) + " at once; make it with a larger max_run_bytes");
}

void RowStore::step(std::span<const int64_t> wanted, int64_t* rows) {
  const std::lock_guard hold(mutex_);
  const auto begin = Clock::now();
  const int64_t io_us_before = stats_.io_us;
  const RowChange* change = nullptr;
  try {
    change = &window_.step(wanted);
  } catch (const Error&) {
    throw;  // refused, and nothing has changed
  } catch (...) {
    window_.clear();
    throw;
  }
  try {
    move_rows(*change);
    copy_bias(*change);
    read_rows(*change);
  } catch (...) {
    window_.clear();
    ++stats_.failure_count;
    throw;
  }
  for (size_t at = 0; at < wanted.size(); ++at) rows[at] = window_.row_of(wanted[at]);
  stats_.management_us += us_since(begin) - (stats_.io_us - io_us_before);
}

void RowStore::clear() {
  const std::lock_guard hold(mutex_);
  window_.clear();
}

void RowStore::move_rows(const RowChange& change) {
  const auto move = [&](char* base, int64_t bytes, const RowMove& one) {
    std::memcpy(base + one.target_row * bytes, base + one.source_row * bytes, static_cast<size_t>(bytes));
  };
  for (const RowMove& one : change.moves) {
    move(matrix(), row_bytes_, one);
    if (bias() != nullptr) move(bias(), options_.bias_bytes, one);
  }
}

void RowStore::copy_bias(const RowChange& change) {
  if (bias() == nullptr) return;
  for (const RowArrival& arrival : change.arrivals)
    std::memcpy(bias() + arrival.row * options_.bias_bytes,
                static_cast<const char*>(options_.bias) + arrival.neuron * options_.bias_bytes,
                static_cast<size_t>(options_.bias_bytes));
}

void RowStore::read_rows(const RowChange& change) {
  if (change.arrivals.empty()) return;
  std::vector<int64_t> neurons;
  neurons.reserve(change.arrivals.size());
  for (const RowArrival& arrival : change.arrivals) neurons.push_back(arrival.neuron);
  std::vector<ByteRange> ranges = row_ranges(neurons, ranges_, options_.stride_bytes);
  for (ByteRange& range : ranges) range.offset_bytes += options_.offset_bytes;
  const std::vector<ReadRun> runs = plan_read_runs(
      ranges, {.amplification = options_.amplification, .max_run_bytes = options_.reader->max_run_bytes()});
  for (const ReadRun& run : runs) stats_.read_bytes += device_bytes(run);
  stats_.read_count += static_cast<int64_t>(runs.size());
  stats_.wanted_bytes += static_cast<int64_t>(neurons.size()) * row_bytes_;
  const RowReader::Times times = options_.reader->read(
      *options_.file, runs, [&](size_t run, const char* data) { land_rows(change, runs[run], ranges, data); });
  stats_.io_us += times.wait_us;
}

// Whole pages, and the last one of the file as far as it goes.
int64_t RowStore::device_bytes(const ReadRun& run) const {
  const int64_t end_bytes = align_up(run.offset_bytes + run.size_bytes, kPageBytes);
  return std::min(end_bytes, options_.file->header().file_bytes) - align_down(run.offset_bytes, kPageBytes);
}

void RowStore::land_rows(const RowChange& change, const ReadRun& run, std::span<const ByteRange> ranges,
                         const char* data) {
  const size_t per_row = ranges_.size();
  const auto begin = static_cast<size_t>(run.first_range), end = begin + static_cast<size_t>(run.range_count);
  for (size_t at = begin; at < end; ++at) {
    const char* source = data + (ranges[at].offset_bytes - run.offset_bytes);
    char* target = matrix() + change.arrivals[at / per_row].row * row_bytes_;
    for (const Copy& copy : copies_)
      if (copy.range == at % per_row)
        std::memcpy(target + copy.target_bytes, source + copy.source_bytes, static_cast<size_t>(copy.size_bytes));
  }
}

RowStoreStats RowStore::stats() const {
  const std::lock_guard hold(mutex_);
  RowStoreStats stats = stats_;
  stats.window = window_.stats();
  return stats;
}

void RowStore::check_invariants() const {
  const std::lock_guard hold(mutex_);
  window_.check_invariants();
}

}  // namespace memsys
