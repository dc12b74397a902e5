// The device's side of a table: its pages are registered, piece by piece, and a kernel reads the rows where they lie.
#include <algorithm>

#include "base/bytes.h"
#include "base/error.h"
#include "engine/row_table.h"
#include "kernels/gather_launch.h"
#include "memory/pages.h"

namespace memsys {
namespace {

// One registration of half a terabyte fails where many smaller ones do not.
constexpr int64_t kRegisterBytes = 4 * kGiB;

}  // namespace

RowTable::~RowTable() { close(); }

void RowTable::close() noexcept {
  for (void* pointer : registered_) open_to_->unregister_host(pointer);
  registered_.clear();
  open_to_.reset();
}

void RowTable::open_to(const std::shared_ptr<Device>& device, Registration registration) {
  const std::lock_guard lock(open_mutex_);
  if (open_to_ != nullptr) {
    // The registration is portable: every device of the process may read it.
    MEMSYS_EXPECT(open_to_->capabilities().kind == device->capabilities().kind, InputError,
                  "a table is open to one kind of device; make another table for the second");
    return;
  }
  open_to_ = device;
  if (registration == Registration::owners) return;
  const auto address = reinterpret_cast<uintptr_t>(data_);
  const auto begin = static_cast<uintptr_t>(align_down(static_cast<int64_t>(address), page_bytes()));
  const auto end = static_cast<uintptr_t>(align_up(static_cast<int64_t>(address) + size_bytes(), page_bytes()));
  try {
    for (uintptr_t at = begin; at < end && size_bytes() > 0; at += static_cast<uintptr_t>(kRegisterBytes)) {
      auto* pointer = reinterpret_cast<void*>(at);
      device->register_host(pointer, std::min(kRegisterBytes, static_cast<int64_t>(end - at)));
      registered_.push_back(pointer);
    }
  } catch (...) {
    close();
    throw;
  }
}

void RowTable::gather_on_device(const DeviceGatherRequest& request) const {
  MEMSYS_EXPECT(open_to_ != nullptr, InputError, "a gather on a device: the table is not open to one; call open_to()");
  const RowGather gather{.table = data_,
                         .row_bytes = options_.row_bytes,
                         .row_stride_bytes = options_.row_stride_bytes,
                         .row_count = options_.row_count,
                         .index = request.index,
                         .index_type = request.index_type,
                         .index_count = request.index_count,
                         .target = request.rows,
                         .target_stride_bytes = options_.row_bytes,
                         .target_position = nullptr,
                         .bad_position = request.bad_position};
  cuda_kernels::gather_rows_aligned(gather, request.max_blocks, request.stream.value);
}

}  // namespace memsys
