// Binds the stores of resident rows. Addresses cross as integers; the matrix comes out as a buffer.
#include "engine/row_store.h"

#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/byte_view.h"
#include "bindings/topics.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;

enum class RowKeep { window, lru };

std::shared_ptr<RowReader> make_reader(const std::shared_ptr<Runtime>& runtime, int64_t max_run_bytes,
                                       int64_t slot_count, int64_t device_budget_bytes) {
  return std::make_shared<RowReader>(RowReaderOptions{.runtime = runtime,
                                                      .max_run_bytes = max_run_bytes,
                                                      .slot_count = slot_count,
                                                      .device_budget_bytes = device_budget_bytes});
}

std::unique_ptr<RowPolicy> make_policy(RowKeep keep, int64_t row_count, int64_t window_steps,
                                       const std::vector<int64_t>& hot) {
  MEMSYS_EXPECT(row_count >= 1, InputError,
                "a store of " + std::to_string(row_count) + " rows was asked for; give 1 or more");
  return keep == RowKeep::lru ? make_lru_policy(row_count) : make_window_policy(row_count, window_steps, hot);
}

std::shared_ptr<RowStore> make_store(const std::shared_ptr<RowReader>& reader, const std::shared_ptr<WeightFile>& file,
                                     int64_t offset, int64_t row_count, int64_t stride_bytes, int64_t unit_bytes,
                                     const std::vector<std::pair<int64_t, int64_t>>& parts, int64_t capacity_rows,
                                     RowKeep keep, int64_t window_steps, const std::vector<int64_t>& hot,
                                     uintptr_t bias, int64_t bias_bytes, double amplification) {
  RowStoreOptions options{.reader = reader,
                          .file = file,
                          .offset_bytes = offset,
                          .row_count = row_count,
                          .stride_bytes = stride_bytes,
                          .unit_bytes = unit_bytes,
                          .parts = {},
                          .bias = reinterpret_cast<const void*>(bias),
                          .bias_bytes = bias_bytes,
                          .capacity_rows = capacity_rows,
                          .policy = make_policy(keep, row_count, window_steps, hot),
                          .amplification = amplification};
  for (const auto& [part_offset, size] : parts) options.parts.push_back({part_offset, size});
  return std::make_shared<RowStore>(std::move(options));
}

void step(RowStore& self, uintptr_t ids, int64_t count, uintptr_t rows) {
  self.step({reinterpret_cast<const int64_t*>(ids), static_cast<size_t>(count)}, reinterpret_cast<int64_t*>(rows));
}

py::dict stats_of(const RowStore& self) {
  const RowStoreStats stats = self.stats();
  py::dict result;
  result["step_count"] = stats.window.step_count;
  result["arrival_count"] = stats.window.arrival_count;
  result["drop_count"] = stats.window.drop_count;
  result["move_count"] = stats.window.move_count;
  result["set_operation_count"] = stats.window.set_operation_count;
  result["shrink_count"] = stats.window.shrink_count;
  result["wanted_bytes"] = stats.wanted_bytes;
  result["read_bytes"] = stats.read_bytes;
  result["read_count"] = stats.read_count;
  result["io_us"] = stats.io_us;
  result["management_us"] = stats.management_us;
  result["failure_count"] = stats.failure_count;
  return result;
}

ByteView view_of(const std::shared_ptr<RowStore>& self, const void* data, int64_t row_bytes) {
  return ByteView{self, const_cast<void*>(data), self->capacity_rows() * row_bytes};
}

void bind_one_store(py::module_& module) {
  py::class_<RowStore, std::shared_ptr<RowStore>>(module, "RowStore", "The rows of one layer that are resident.")
      .def(py::init(&make_store), Release(), py::kw_only(), py::arg("reader"), py::arg("file"), py::arg("offset"),
           py::arg("row_count"), py::arg("stride_bytes"), py::arg("unit_bytes"), py::arg("parts"),
           py::arg("capacity_rows"), py::arg("keep") = RowKeep::window, py::arg("window_steps") = 1,
           py::arg("hot") = std::vector<int64_t>{}, py::arg("bias") = 0, py::arg("bias_bytes") = 0,
           py::arg("amplification") = 1.25)
      .def("step", &step, Release(), py::arg("ids"), py::arg("count"), py::arg("rows"),
           "Makes the ids (int64, ascending) resident and writes the row of each.")
      .def("clear", &RowStore::clear, Release())
      .def("matrix",
           [](const std::shared_ptr<RowStore>& self) { return view_of(self, self->matrix(), self->row_bytes()); })
      .def("bias",
           [](const std::shared_ptr<RowStore>& self) { return view_of(self, self->bias(), self->bias_bytes()); })
      .def("neurons",
           [](const std::shared_ptr<RowStore>& self) {
             return view_of(self, self->neurons().data(), static_cast<int64_t>(sizeof(int64_t)));
           })
      .def_property_readonly("resident_count", &RowStore::resident_count)
      .def_property_readonly("capacity_rows", &RowStore::capacity_rows)
      .def_property_readonly("row_bytes", &RowStore::row_bytes)
      .def("stats", &stats_of)
      .def("check_invariants", &RowStore::check_invariants);
}

}  // namespace

void bind_row_store(py::module_& module) {
  py::enum_<RowKeep>(module, "RowKeep").value("window", RowKeep::window).value("lru", RowKeep::lru);
  py::class_<RowReader, std::shared_ptr<RowReader>>(module, "RowReader", "Staging and budget that row stores share.")
      .def(py::init(&make_reader), Release(), py::arg("runtime"), py::kw_only(), py::arg("max_run_bytes") = 131072,
           py::arg("slot_count") = 32, py::arg("device_budget_bytes") = -1)
      .def_property_readonly("max_run_bytes", &RowReader::max_run_bytes)
      .def_property_readonly("budget", &RowReader::budget);
  bind_one_store(module);
}

}  // namespace memsys
