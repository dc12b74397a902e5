// C++ errors arrive as the classes of memsys.errors, each also one of Python's own kinds.
#include "base/error.h"
#include "bindings/topics.h"

namespace py = pybind11;

namespace memsys {
namespace {

void raise(const char* name, const Error& error) {
  const py::object kind = py::module_::import("memsys.errors").attr(name);
  PyErr_SetObject(kind.ptr(), kind(error.what()).ptr());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const SpillError& error) {
    const py::object kind = py::module_::import("memsys.errors").attr("SpillError");
    PyErr_SetObject(kind.ptr(), kind(error.errno_value(), error.what()).ptr());
  } catch (const BudgetError& error) {
    raise("BudgetError", error);
  } catch (const CorruptionError& error) {
    raise("CorruptionError", error);
  } catch (const InputError& error) {
    raise("InputError", error);
  } catch (const OrderError& error) {
    raise("OrderError", error);
  } catch (const DeviceError& error) {
    raise("DeviceError", error);
  } catch (const Error& error) {
    raise("MemsysError", error);
  }
}

}  // namespace

void bind_errors(py::module_&) { py::register_exception_translator(translate); }

}  // namespace memsys
