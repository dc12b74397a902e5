// The Python module memsys._C: a list of topics.
#include "bindings/byte_view.h"
#include "bindings/topics.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "The core of memsys: bytes and time. Use the memsys package instead.";
  memsys::bind_errors(module);
  memsys::bind_runtime(module);
  memsys::bind_byte_view(module);
  memsys::bind_store(module);
  memsys::bind_rows(module);
  memsys::bind_system(module);
  memsys::bind_weights(module);
  memsys::bind_row_store(module);
  memsys::bind_plans(module);
  memsys::bind_slab(module);
}
