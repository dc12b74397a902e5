// Binds tables of rows and the reader of tensor files. Addresses cross as integers; memory comes out as a buffer.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/byte_view.h"
#include "bindings/topics.h"
#include "engine/row_table.h"
#include "engine/tensor_reader.h"
#include "kernels/request_count.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;

void* pointer_of(uintptr_t address) { return reinterpret_cast<void*>(address); }

std::shared_ptr<RowTable> make_table(const std::shared_ptr<Runtime>& runtime, int64_t row_count, int64_t row_bytes,
                                     int64_t helper_count, uintptr_t adopted, int64_t row_stride_bytes,
                                     uintptr_t pool) {
  return std::make_shared<RowTable>(RowTableOptions{.runtime = runtime,
                                                    .row_count = row_count,
                                                    .row_bytes = row_bytes,
                                                    .row_stride_bytes = row_stride_bytes,
                                                    .adopted = pointer_of(adopted),
                                                    .helper_count = helper_count,
                                                    .pool = reinterpret_cast<ForeignPool>(pool)});
}

int64_t gather(RowTable& self, uintptr_t index, IndexType index_type, int64_t index_count, uintptr_t rows,
               int64_t thread_count, const std::string& backend) {
  return self.gather({.index = pointer_of(index),
                      .index_type = index_type,
                      .index_count = index_count,
                      .rows = pointer_of(rows),
                      .thread_count = thread_count,
                      .backend = backend});
}

void gather_on_device(const RowTable& self, uintptr_t index, IndexType index_type, int64_t index_count, uintptr_t rows,
                      uintptr_t bad_position, int64_t max_blocks, uintptr_t stream) {
  self.gather_on_device({.index = pointer_of(index),
                         .index_type = index_type,
                         .index_count = index_count,
                         .rows = pointer_of(rows),
                         .bad_position = static_cast<unsigned long long*>(pointer_of(bad_position)),
                         .max_blocks = max_blocks,
                         .stream = {stream}});
}

py::dict count_requests_of_rows(int64_t row_bytes, int64_t row_stride_bytes, uintptr_t base, int64_t row_count,
                                int64_t sample_count, uint64_t seed) {
  const RandomRows rows{row_bytes, row_stride_bytes, base, row_count, sample_count, seed};
  const RequestCount aligned = count_random_requests(ReadPattern::aligned, rows);
  py::dict result;
  result["aligned"] = aligned.per_row();
  result["flat"] = count_random_requests(ReadPattern::flat, rows).per_row();
  result["least"] = static_cast<double>(aligned.least_count) / static_cast<double>(std::max<int64_t>(sample_count, 1));
  return result;
}

void bind_table(py::module_& module) {
  py::enum_<IndexType>(module, "IndexType").value("int32", IndexType::int32).value("int64", IndexType::int64);
  py::class_<RowTable, std::shared_ptr<RowTable>>(module, "RowTable", "Rows in host memory, gathered by index.")
      .def(py::init(&make_table), Release(), py::arg("runtime"), py::arg("row_count"), py::arg("row_bytes"),
           py::arg("helper_count"), py::arg("adopted") = 0, py::arg("row_stride_bytes") = 0, py::arg("pool") = 0)
      .def(
          "memory",
          [](const std::shared_ptr<RowTable>& self) {
            return ByteView{self, self->data(), self->size_bytes()};
          },
          "The table's bytes.")
      .def("gather", &gather, Release(), py::arg("index"), py::arg("index_type"), py::arg("index_count"),
           py::arg("rows"), py::arg("thread_count"), py::arg("backend") = "",
           "-1, or the position of the first index out of range, and then nothing was written.")
      .def(
          "allocate_rows",
          [](RowTable& self, int64_t bytes) {
            const auto owner = self.allocate_rows(bytes);
            return ByteView{owner, owner->data(), bytes};
          },
          Release(), py::arg("bytes"), "Memory from the pool of outputs.")
      .def(
          "open_to",
          [](RowTable& self, const Runtime& runtime, bool is_registered) {
            self.open_to(runtime.device, is_registered ? Registration::owners : Registration::ours);
          },
          Release(), py::arg("runtime"), py::arg("is_registered"), "Lets a device read the table from its kernels.")
      .def("gather_on_device", &gather_on_device, Release(), py::kw_only(), py::arg("index"), py::arg("index_type"),
           py::arg("index_count"), py::arg("rows"), py::arg("bad_position"), py::arg("max_blocks"), py::arg("stream"))
      .def("trim", &RowTable::trim, Release())
      .def_property_readonly("pool_bytes", &RowTable::pool_bytes)
      .def_property_readonly("address", [](const RowTable& self) { return reinterpret_cast<uintptr_t>(self.data()); });
  module.def("count_requests", &count_requests_of_rows, py::arg("row_bytes"), py::arg("row_stride_bytes"),
             py::arg("base"), py::arg("row_count"), py::arg("sample_count"), py::arg("seed"),
             "Requests to host memory a row, by the model: the aligned kernel's, a flat one's, and the least.");
  module.def("row_copy_backends", [] {
    std::vector<std::string> names;
    for (const RowCopyBackend& backend : row_copy_backends())
      if (backend.is_supported()) names.emplace_back(backend.name);
    return names;
  });
}

py::list tensors_of(const TensorReader& self) {
  py::list result;
  for (const TensorEntry& entry : self.header().tensors) {
    py::dict one;
    one["name"] = entry.name;
    one["dtype"] = tensor_type_name(entry.dtype);
    one["shape"] = entry.shape;
    one["is_row_major"] = entry.order == TensorOrder::row_major;
    one["bytes"] = entry.size_bytes;
    result.append(one);
  }
  return result;
}

}  // namespace

void bind_rows(py::module_& module) {
  bind_table(module);
  py::class_<TensorReader>(module, "TensorReader", "Reads tensors of a .npy or .safetensors file, checked.")
      .def(py::init<std::shared_ptr<Runtime>, const std::string&>(), Release(), py::arg("runtime"), py::arg("path"))
      .def_property_readonly("tensors", &tensors_of,
                             "One dictionary a tensor: name, dtype, shape, is_row_major, bytes.")
      .def(
          "read",
          [](const TensorReader& self, size_t which, uintptr_t address) {
            self.read(self.header().tensors.at(which), pointer_of(address));
          },
          Release(), py::arg("which"), py::arg("address"), "Reads tensor number `which` to `address`.");
}

}  // namespace memsys
