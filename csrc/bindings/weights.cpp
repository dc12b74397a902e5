// Binds the reader of weight files. Addresses cross as integers.
#include <pybind11/stl.h>

#include <utility>

#include "base/error.h"
#include "bindings/topics.h"
#include "engine/weight_file.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;

std::shared_ptr<WeightFile> open_file(const std::shared_ptr<Runtime>& runtime, const std::string& path,
                                      VerifyMode verify, bool use_direct_io) {
  return WeightFile::open(runtime, path, use_direct_io ? DirectMode::automatic : DirectMode::off, verify);
}

py::list tensors_of(const WeightFile& self) {
  py::list result;
  for (const TensorEntry& entry : self.header().tensors) {
    py::dict one;
    one["name"] = entry.name;
    one["dtype"] = tensor_type_name(entry.dtype);
    one["shape"] = entry.shape;
    one["bytes"] = entry.size_bytes;
    one["offset"] = entry.offset_bytes;
    result.append(one);
  }
  return result;
}

void set_checksums(WeightFile& self, int64_t offset_bytes, int64_t size_bytes, int64_t unit_bytes,
                   const std::string& values) {
  constexpr size_t kValueBytes = sizeof(uint32_t);
  MEMSYS_EXPECT(values.size() % kValueBytes == 0, InputError,
                "checksums are 4 bytes each, little-endian, but " + std::to_string(values.size()) +
                    " bytes were given; give whole ones");
  std::vector<uint32_t> numbers;
  for (size_t at = 0; at < values.size(); at += kValueBytes) {
    uint32_t number = 0;
    for (size_t byte = kValueBytes; byte-- > 0;) number = number << 8 | static_cast<unsigned char>(values[at + byte]);
    numbers.push_back(number);
  }
  self.set_checksums(offset_bytes, size_bytes, unit_bytes, std::move(numbers));
}

}  // namespace

void bind_weights(py::module_& module) {
  py::enum_<VerifyMode>(module, "Verify")
      .value("first", VerifyMode::first)
      .value("always", VerifyMode::always)
      .value("never", VerifyMode::never);
  py::class_<WeightFile, std::shared_ptr<WeightFile>>(module, "WeightFile",
                                                      "A file of weights: checked, read past the page cache, verified.")
      .def(py::init(&open_file), Release(), py::arg("runtime"), py::arg("path"), py::arg("verify") = VerifyMode::first,
           py::arg("use_direct_io") = true)
      .def_property_readonly("path", &WeightFile::path)
      .def_property_readonly("file_bytes", [](const WeightFile& self) { return self.header().file_bytes; })
      .def_property_readonly("tensors", &tensors_of,
                             "One dictionary a tensor, by offset: name, dtype, shape, bytes, offset (in the file).")
      .def_property_readonly("metadata", [](const WeightFile& self) { return self.header().metadata; })
      .def(
          "set_checksums",
          [](WeightFile& self, int64_t offset, int64_t bytes, int64_t unit_bytes, const py::bytes& values) {
            set_checksums(self, offset, bytes, unit_bytes, values);
          },
          py::arg("offset"), py::arg("bytes"), py::arg("unit_bytes"), py::arg("values"),
          "The CRC32C of each unit of a range, as little-endian uint32.")
      .def(
          "read",
          [](WeightFile& self, int64_t offset, int64_t bytes, uintptr_t address) {
            self.read(offset, bytes, reinterpret_cast<void*>(address));
          },
          Release(), py::arg("offset"), py::arg("bytes"), py::arg("address"), "Reads a range to `address`, verified.")
      .def_property_readonly("is_direct", &WeightFile::is_direct)
      .def_property_readonly("read_count", &WeightFile::read_count)
      .def_property_readonly("read_bytes", &WeightFile::read_bytes);
}

}  // namespace memsys
