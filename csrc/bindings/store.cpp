// Binds the tensor store. Addresses and streams cross as integers; restored bytes come out as a buffer.
#include <pybind11/stl.h>

#include "bindings/byte_view.h"
#include "bindings/topics.h"
#include "engine/runtime.h"
#include "engine/tensor_store.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;

std::shared_ptr<TensorStore> make_store(const std::shared_ptr<Runtime>& runtime, const std::string& spill_folder,
                                        int64_t device_budget_bytes, int64_t host_budget_bytes,
                                        int64_t disk_budget_bytes, bool use_direct_io, bool check_host_copies) {
  return TensorStore::make({.executor = runtime->executor,
                            .device = runtime->device,
                            .io = runtime->io,
                            .host_upstream = runtime->faulty_memory,
                            .target_upstream = runtime->faulty_memory,
                            .spill_folder = spill_folder,
                            .device_budget_bytes = device_budget_bytes,
                            .host_budget_bytes = host_budget_bytes,
                            .disk_budget_bytes = disk_budget_bytes,
                            .direct = use_direct_io ? DirectMode::automatic : DirectMode::off,
                            .host_check = check_host_copies ? HostCheck::checksum : HostCheck::off});
}

template <typename Block>
py::object error_of(const Block& ticket) {
  if (!ticket.is_done() || !ticket.error()) return py::none();
  try {
    std::rethrow_exception(ticket.error());
  } catch (const std::exception& error) {
    return py::str(error.what());
  }
}

void bind_blocks(py::module_& module) {
  py::enum_<Tier>(module, "Tier")
      .value("device", Tier::device)
      .value("pinned", Tier::pinned)
      .value("pageable", Tier::pageable)
      .value("file", Tier::file);
  py::class_<SavedBlock, BlockRef>(module, "SavedBlock", "Bytes that left the device.")
      .def_readonly("id", &SavedBlock::id)
      .def_readonly("bytes", &SavedBlock::bytes)
      .def_readonly("target_tier", &SavedBlock::target_tier)
      .def_property_readonly("has_left", [](const SavedBlock& self) { return self.left.is_done(); })
      .def_property_readonly("leave_error", [](const SavedBlock& self) { return error_of(self.left); })
      .def_property_readonly("is_stored", [](const SavedBlock& self) { return self.stored.is_done(); })
      .def_property_readonly("has_host_copy", [](const SavedBlock& self) { return self.host_copy() != nullptr; });
  py::class_<Arrival, ArrivalRef>(module, "Arrival", "A swap-in under way.")
      .def_property_readonly("is_done", [](const Arrival& self) { return self.done.is_done(); })
      .def_property_readonly("is_issued", [](const Arrival& self) { return self.issued.is_done(); })
      .def(
          "target",
          [](const Arrival& self) {
            return ByteView{self.owned_target, self.target, self.block->bytes};
          },
          "The restored bytes, in the store's own memory.");
  py::class_<ByteBudget, std::shared_ptr<ByteBudget>>(module, "ByteBudget")
      .def("try_reserve", &ByteBudget::try_reserve, py::arg("bytes"))
      .def("release", &ByteBudget::release, py::arg("bytes"))
      .def("reset_peak", &ByteBudget::reset_peak)
      .def_property_readonly("limit_bytes", &ByteBudget::limit_bytes)
      .def_property_readonly("used_bytes", &ByteBudget::used_bytes)
      .def_property_readonly("peak_bytes", &ByteBudget::peak_bytes)
      .def_property_readonly("left_bytes", &ByteBudget::left_bytes);
}

void bind_log(py::module_& module) {
  py::enum_<Direction>(module, "Direction").value("out", Direction::out).value("in_", Direction::in);
  py::class_<TransferEntry>(module, "TransferEntry", "A transfer that has ended.")
      .def_readonly("direction", &TransferEntry::direction)
      .def_readonly("tier", &TransferEntry::tier)
      .def_property_readonly("touches_device", [](const TransferEntry& self) { return self.hop == Hop::device; })
      .def_property_readonly("is_failed",
                             [](const TransferEntry& self) { return self.outcome == TransferOutcome::failed; })
      .def_readonly("begin_us", &TransferEntry::begin_us)
      .def_readonly("end_us", &TransferEntry::end_us)
      .def_readonly("bytes", &TransferEntry::bytes)
      .def_readonly("block_id", &TransferEntry::block_id);
  py::class_<LevelEntry>(module, "LevelEntry", "What a tier's budget had in use from a moment on.")
      .def_readonly("tier", &LevelEntry::tier)
      .def_readonly("at_us", &LevelEntry::at_us)
      .def_readonly("used_bytes", &LevelEntry::used_bytes);
}

py::dict stats_of(TensorStore& self) {
  const StoreStats stats = self.stats();
  py::dict result;
  result["out_bytes"] = stats.out_bytes;
  result["in_bytes"] = stats.in_bytes;
  result["out_count"] = stats.out_count;
  result["in_count"] = stats.in_count;
  result["file_out_bytes"] = stats.file_out_bytes;
  result["file_in_bytes"] = stats.file_in_bytes;
  result["in_flight_bytes"] = stats.in_flight_bytes;
  result["spill_used_bytes"] = self.spill_used_bytes();
  result["target_slabs_taken"] = self.target_arena().stats().taken_count;
  result["host_slabs_taken"] = self.host_arena().stats().taken_count;
  return result;
}

}  // namespace

void bind_store(py::module_& module) {
  bind_blocks(module);
  bind_log(module);
  py::class_<TensorStore, std::shared_ptr<TensorStore>>(module, "TensorStore",
                                                        "Puts the bytes of saved tensors away and brings them back.")
      .def(py::init(&make_store), py::kw_only(), py::arg("runtime"), py::arg("spill_folder"),
           py::arg("device_budget_bytes"), py::arg("host_budget_bytes"), py::arg("disk_budget_bytes"),
           py::arg("use_direct_io") = true, py::arg("check_host_copies") = false)
      .def(
          "swap_out",
          [](TensorStore& self, uintptr_t address, int64_t bytes, uintptr_t stream, Tier tier) {
            return self.swap_out(reinterpret_cast<const void*>(address), bytes, {stream}, tier);
          },
          Release(), py::arg("address"), py::arg("bytes"), py::arg("stream"), py::arg("tier"))
      .def(
          "order_source",
          [](TensorStore& self, const BlockRef& block, uintptr_t stream) { return self.order_source(block, {stream}); },
          Release(), py::arg("block"), py::arg("stream"))
      .def(
          "swap_in",
          [](TensorStore& self, const BlockRef& block, uintptr_t address, uintptr_t stream) {
            return self.swap_in(block, reinterpret_cast<void*>(address), {stream});
          },
          Release(), py::arg("block"), py::arg("address"), py::arg("stream"))
      .def(
          "arrive",
          [](TensorStore& self, const ArrivalRef& arrival, uintptr_t stream) { self.arrive(arrival, {stream}); },
          Release(), py::arg("arrival"), py::arg("stream"))
      .def("wait_ended", &TensorStore::wait_ended, Release(), py::arg("seen_count"), py::arg("timeout_us"))
      .def("drain", &TensorStore::drain, Release())
      .def(
          "trim", [](TensorStore& self) { return self.target_arena().trim() + self.host_arena().trim(); }, Release())
      .def(
          "allocate_target",
          [](TensorStore& self, int64_t bytes) {
            const auto owner = self.allocate_target(bytes);
            return ByteView{owner, owner->data(), bytes};
          },
          Release(), py::arg("bytes"), "Room beside restored bytes, for bytes that are made again.")
      .def("check_invariants",
           [](TensorStore& self) {
             self.target_arena().check_invariants();
             self.host_arena().check_invariants();
           })
      .def_property_readonly("ended_count", &TensorStore::ended_count)
      .def_property_readonly("arriving_count", &TensorStore::arriving_count)
      .def_property_readonly("in_flight_bytes", [](const TensorStore& self) { return self.stats().in_flight_bytes; })
      .def_property_readonly("device_budget", &TensorStore::device_budget, py::return_value_policy::reference_internal)
      .def_property_readonly("host_budget", &TensorStore::host_budget, py::return_value_policy::reference_internal)
      .def_property_readonly("disk_budget", &TensorStore::disk_budget, py::return_value_policy::reference_internal)
      .def("stats", &stats_of)
      .def("start_log", &TensorStore::start_log, Release(), py::arg("capacity"),
           "Record transfers and levels: the newest `capacity` of each.")
      .def("stop_log", &TensorStore::stop_log, Release(), "Record no more; what was recorded stays.")
      .def("logged_transfers", [](const TensorStore& self) { return self.log().transfers(); })
      .def("logged_levels", [](const TensorStore& self) { return self.log().levels(); })
      .def(
          "now_us", [](const TensorStore& self) { return self.log().now_us(); }, "The clock of what is logged.")
      .def_property_readonly("log_dropped_count", [](const TensorStore& self) { return self.log().dropped_count(); });
}

}  // namespace memsys
