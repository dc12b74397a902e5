// How bytes of the core reach Python: a buffer that keeps their owner alive as long as any tensor over them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

namespace memsys {

struct ByteView {
  std::shared_ptr<void> owner;
  void* data;
  int64_t bytes;
};

inline void bind_byte_view(pybind11::module_& module) {
  namespace py = pybind11;
  py::class_<ByteView>(module, "ByteView", py::buffer_protocol()).def_buffer([](const ByteView& self) {
    return py::buffer_info(self.data, 1, py::format_descriptor<unsigned char>::format(), 1, {self.bytes}, {1});
  });
}

}  // namespace memsys
