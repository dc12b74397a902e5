// Binds what env and doctor ask of the machine, and the checksum that files of weights carry.
#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings/topics.h"
#include "device/device.h"
#include "io/checksum.h"
#include "io/io_engine.h"

namespace py = pybind11;

namespace memsys {
namespace {

py::tuple uring() {
  std::string reason;
  const bool works = probe_uring(&reason);
  return py::make_tuple(works, reason);
}

py::dict spill_folder(const std::string& folder) {
  const SpillFolderReport report = inspect_spill_folder(folder);
  py::dict result;
  result["exists"] = report.exists;
  result["writable"] = report.writable;
  result["is_symlink"] = report.is_symlink;
  result["is_tmpfs"] = report.is_tmpfs;
  result["has_tmpfile"] = report.has_tmpfile;
  result["has_direct"] = report.has_direct;
  result["free_bytes"] = report.free_bytes;
  result["total_bytes"] = report.total_bytes;
  result["direct_alignment"] = report.direct_alignment;
  result["filesystem"] = report.filesystem;
  result["message"] = report.message;
  return result;
}

py::dict cuda() {
  const CudaStatus status = cuda_status();
  py::dict result;
  result["built"] = status.built;
  result["runtime_version"] = status.runtime_version;
  result["driver_version"] = status.driver_version;
  result["device_count"] = status.device_count;
  result["message"] = status.message;
  return result;
}

uint32_t checksum(const py::buffer& data, uint32_t seed) {
  const py::buffer_info info = data.request();
  MEMSYS_EXPECT(PyBuffer_IsContiguous(info.view(), 'C') != 0, InputError,
                "crc32c: wanted contiguous bytes, found a strided view; copy it first, with bytes(...)");
  return crc32c(info.ptr, info.size * info.itemsize, seed);
}

std::vector<uint32_t> checksums_of(uintptr_t address, int64_t bytes, int64_t unit_bytes) {
  const auto* data = reinterpret_cast<const char*>(address);
  std::vector<uint32_t> values;
  values.reserve(static_cast<size_t>((bytes + unit_bytes - 1) / unit_bytes));
  for (int64_t begin = 0; begin < bytes; begin += unit_bytes)
    values.push_back(crc32c(data + begin, std::min(unit_bytes, bytes - begin)));
  return values;
}

py::bytes checksum_units(uintptr_t address, int64_t bytes, int64_t unit_bytes) {
  MEMSYS_EXPECT(bytes >= 0 && unit_bytes > 0, InputError,
                "crc32c_units: wanted bytes of 0 or more in units of 1 or more, found " + std::to_string(bytes) +
                    " in units of " + std::to_string(unit_bytes) + "; pass a tensor's size and a unit");
  unit_bytes = std::min(unit_bytes, std::max<int64_t>(bytes, 1));
  std::vector<uint32_t> values;
  {
    const py::gil_scoped_release release;
    values = checksums_of(address, bytes, unit_bytes);
  }
  std::string result;
  result.reserve(values.size() * sizeof(uint32_t));
  for (const uint32_t value : values)
    for (unsigned shift = 0; shift < 32; shift += 8) result += static_cast<char>(value >> shift & 0xFF);
  return py::bytes(result);
}

}  // namespace

void bind_system(py::module_& module) {
  module.def("probe_uring", &uring, "(works, reason if not)");
  module.def("inspect_spill_folder", &spill_folder, py::arg("folder"));
  module.def("crc32c_implementation", &crc32c_implementation);
  module.def("crc32c", &checksum, py::arg("data"), py::arg("seed") = 0, "CRC32C of contiguous bytes.");
  module.def("crc32c_units", &checksum_units, py::arg("address"), py::arg("bytes"), py::arg("unit_bytes"),
             "CRC32C of each unit of the memory at `address`, the last one short: little-endian 32-bit words.");
  module.def("cuda_status", &cuda);
}

}  // namespace memsys
