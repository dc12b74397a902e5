// Binds the planned slab: one of its own, to replay traces on, and the one that serves this whole process.
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/topics.h"
#include "engine/installed_allocator.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;
using Integers = std::vector<int64_t>;

SlabPlan plan_of(const Integers& bytes, const Integers& offsets, int64_t slab_bytes) {
  MEMSYS_EXPECT(bytes.size() == offsets.size(), InputError, "planned slab: one offset a request");
  SlabPlan plan{{}, slab_bytes};
  for (size_t index = 0; index < bytes.size(); ++index) plan.requests.push_back({bytes[index], offsets[index]});
  return plan;
}

py::dict described(const PlannedSlabStats& stats) {
  py::dict result;
  result["step_count"] = stats.step_count;
  result["hit_count"] = stats.hit_count;
  result["miss_count"] = stats.miss_count;
  result["conflict_count"] = stats.conflict_count;
  result["online_count"] = stats.online_count;
  result["wait_count"] = stats.wait_count;
  result["live_bytes"] = stats.live_bytes;
  result["peak_live_bytes"] = stats.peak_live_bytes;
  result["reserved_bytes"] = stats.reserved_bytes;
  result["peak_reserved_bytes"] = stats.peak_reserved_bytes;
  result["upstream_count"] = stats.upstream_count;
  return result;
}

uintptr_t address_of(void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
void* pointer_of(uintptr_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

void bind_slab(py::module_& module) {
  py::class_<PlannedSlab>(module, "PlannedSlab", "Serves a step's requests at planned addresses.")
      .def(py::init([](const std::shared_ptr<Runtime>& runtime, const Integers& bytes, const Integers& offsets,
                       int64_t slab_bytes) {
             return std::make_unique<PlannedSlab>(runtime->device, plan_of(bytes, offsets, slab_bytes));
           }),
           py::keep_alive<1, 2>(), py::arg("runtime"), py::arg("bytes"), py::arg("offsets"), py::arg("slab_bytes"))
      .def(
          "begin_step", [](PlannedSlab& self, uintptr_t stream) { self.begin_step({stream}); }, Release(),
          py::arg("stream") = 0)
      .def("end_step", &PlannedSlab::end_step, Release())
      .def(
          "allocate",
          [](PlannedSlab& self, int64_t bytes, uintptr_t stream) { return address_of(self.allocate(bytes, {stream})); },
          Release(), py::arg("bytes"), py::arg("stream") = 0)
      .def(
          "free", [](PlannedSlab& self, uintptr_t address) { self.free(pointer_of(address)); }, Release(),
          py::arg("address"))
      .def("reset", &PlannedSlab::reset, Release())
      .def("check", &PlannedSlab::check_invariants, Release(), "Raises RuntimeError if live blocks overlap.")
      .def("stats", [](const PlannedSlab& self) { return described(self.stats()); });
  module.def(
      "install_allocator",
      [](const std::shared_ptr<Runtime>& runtime, int device_index, const Integers& bytes, const Integers& offsets,
         int64_t slab_bytes) { install_allocator(runtime, device_index, plan_of(bytes, offsets, slab_bytes)); },
      py::arg("runtime"), py::arg("device_index"), py::arg("bytes"), py::arg("offsets"), py::arg("slab_bytes"),
      "Makes memsys_allocate and its kin serve this process; once, for good.");
  module.def("is_allocator_installed", &is_allocator_installed);
  module.def(
      "begin_allocator_step",
      [](int device_index, uintptr_t stream) { installed_slab(device_index).begin_step({stream}); }, Release(),
      py::arg("device_index"), py::arg("stream"));
  module.def(
      "end_allocator_step", [](int device_index) { installed_slab(device_index).end_step(); }, Release(),
      py::arg("device_index"));
  module.def(
      "allocator_stats",
      [] {
        py::dict result;
        for (const auto& [index, stats] : installed_stats()) result[py::int_(index)] = described(stats);
        return result;
      },
      "By device index.");
}

}  // namespace memsys
