// Binds the reader of weight files and the window of layers. Addresses cross as integers; weights come out as buffers
// that keep their lease.
#include <pybind11/stl.h>

#include <tuple>
#include <utility>

#include "base/bytes.h"
#include "bindings/byte_view.h"
#include "bindings/topics.h"
#include "engine/layer_store.h"
#include "engine/weight_file.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;
using PartTuple = std::tuple<std::shared_ptr<WeightFile>, int64_t, int64_t>;

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

std::vector<LayerParts> layers_of(const std::vector<std::vector<PartTuple>>& layers) {
  std::vector<LayerParts> result;
  for (const auto& parts : layers) {
    LayerParts& layer = result.emplace_back();
    for (const auto& [file, offset_bytes, size_bytes] : parts) layer.push_back({file, offset_bytes, size_bytes});
  }
  return result;
}

std::shared_ptr<LayerStore> make_store(const std::shared_ptr<Runtime>& runtime,
                                       const std::vector<std::vector<PartTuple>>& layers, int64_t window_layers,
                                       int64_t device_budget_bytes) {
  return std::make_shared<LayerStore>(LayerStoreOptions{.runtime = runtime,
                                                        .layers = layers_of(layers),
                                                        .window_layers = window_layers,
                                                        .device_budget_bytes = device_budget_bytes});
}

py::dict stats_of(const LayerStore& self) {
  const LayerStoreStats stats = self.stats();
  py::dict result;
  result["load_count"] = stats.load_count;
  result["hit_count"] = stats.hit_count;
  result["read_bytes"] = stats.read_bytes;
  result["stall_us"] = stats.stall_us;
  result["resident_bytes"] = stats.resident_bytes;
  result["peak_resident_bytes"] = stats.peak_resident_bytes;
  result["in_flight_count"] = stats.in_flight_count;
  return result;
}

void bind_file(py::module_& module) {
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

}  // namespace

void bind_weights(py::module_& module) {
  bind_file(module);
  py::enum_<Visit>(module, "Visit")
      .value("forward", Visit::forward)
      .value("backward", Visit::backward)
      .value("forward_only", Visit::forward_only);
  py::class_<LayerLease, LeaseRef>(module, "LayerLease", "One use of a layer: its bytes stay while this lives.")
      .def(
          "part",
          [](const LeaseRef& self, int64_t index) {
            const LayerBytes part = self->part(index);
            return ByteView{self, part.data, part.bytes};
          },
          py::arg("index"), "The bytes of one part. The lease lives as long as they do.")
      .def_property_readonly("part_count", &LayerLease::part_count)
      .def_property_readonly("layer", &LayerLease::layer);
  py::class_<LayerStore, std::shared_ptr<LayerStore>>(module, "LayerStore",
                                                      "A window over the layers of a model whose weights are in files.")
      .def(py::init(&make_store), Release(), py::arg("runtime"), py::kw_only(), py::arg("layers"),
           py::arg("window_layers"), py::arg("device_budget_bytes") = -1)
      .def("acquire", &LayerStore::acquire, Release(), py::arg("layer"), py::arg("visit"),
           "Waits until the layer is there and verified.")
      .def("drop", &LayerStore::drop, Release(), py::arg("layer"),
           "Somebody wrote to the layer's memory: it is read again once its last lease is gone.")
      .def("stats", &stats_of)
      .def_property_readonly("slot_bytes", &LayerStore::slot_bytes)
      .def_property_readonly("window_layers", &LayerStore::window_layers);
  module.def(
      "layer_slot_bytes",
      [](const std::vector<std::vector<PartTuple>>& layers) { return layer_slot_bytes(layers_of(layers)); },
      py::arg("layers"), "The memory that one slot of a window over these layers takes.");
}

}  // namespace memsys
