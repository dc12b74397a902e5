// Binds what env and doctor ask of the machine.
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

}  // namespace

void bind_system(py::module_& module) {
  module.def("probe_uring", &uring, "(works, reason if not)");
  module.def("inspect_spill_folder", &spill_folder, py::arg("folder"));
  module.def("crc32c_implementation", &crc32c_implementation);
  module.def("crc32c", &checksum, py::arg("data"), py::arg("seed") = 0, "CRC32C of contiguous bytes.");
  module.def("cuda_status", &cuda);
}

}  // namespace memsys
