// Binds the runtime, its fault switches, and the device calls that Python makes in simulation.
#include "engine/runtime.h"

#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/topics.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Release = py::call_guard<py::gil_scoped_release>;

std::shared_ptr<Runtime> make(DeviceKind kind, int device_index, std::optional<uint64_t> seed, IoEngineChoice io,
                              FaultSeam faults) {
  return make_runtime(
      {.kind = kind, .device_index = device_index, .seed = seed, .io = {.choice = io}, .faults = faults});
}

// The switches of the fault seam, which only a runtime made with it has.
template <typename Seam>
Seam& faulty(const std::shared_ptr<Seam>& seam) {
  MEMSYS_EXPECT(seam != nullptr, InputError,
                "faults were to be armed or counted, but this runtime was made without the seam; make it with "
                "faults=FaultSeam.faulty");
  return *seam;
}

void* pointer_of(uintptr_t address) { return reinterpret_cast<void*>(address); }

void bind_enums(py::module_& module) {
  py::enum_<DeviceKind>(module, "DeviceKind")
      .value("host", DeviceKind::host)
      .value("simulated", DeviceKind::simulated)
      .value("cuda", DeviceKind::cuda);
  py::enum_<IoEngineChoice>(module, "IoEngineChoice")
      .value("automatic", IoEngineChoice::automatic)
      .value("threads", IoEngineChoice::threads)
      .value("uring", IoEngineChoice::uring);
  py::enum_<FaultSeam>(module, "FaultSeam").value("none", FaultSeam::none).value("faulty", FaultSeam::faulty);
  py::enum_<Use>(module, "Use").value("read", Use::read).value("write", Use::write);
  py::enum_<FaultSpan>(module, "FaultSpan").value("once", FaultSpan::once).value("persistent", FaultSpan::persistent);
  py::enum_<IoFault>(module, "IoFault")
      .value("none", IoFault::none)
      .value("no_space", IoFault::no_space)
      .value("io_error", IoFault::io_error)
      .value("interrupted", IoFault::interrupted)
      .value("again", IoFault::again)
      .value("short_transfer", IoFault::short_transfer)
      .value("corrupt", IoFault::corrupt)
      .value("truncated", IoFault::truncated)
      .value("refused", IoFault::refused);
  py::enum_<IoOperation>(module, "IoOperation")
      .value("any", IoOperation::any)
      .value("read", IoOperation::read)
      .value("write", IoOperation::write);
}

using RuntimeClass = py::class_<Runtime, std::shared_ptr<Runtime>>;

void bind_counter(RuntimeClass& runtime, const char* arm, const char* count,
                  std::shared_ptr<FaultCounter> Runtime::*counter) {
  runtime.def(
      arm, [counter](Runtime& self, int64_t at, FaultSpan span) { faulty(self.*counter).arm(at, span); }, py::arg("at"),
      py::arg("span") = FaultSpan::once);
  runtime.def_property_readonly(count,
                                [counter](const Runtime& self) { return faulty(self.*counter).attempt_count(); });
}

void bind_faults(RuntimeClass& runtime) {
  runtime
      .def(
          "arm_io",
          [](Runtime& self, IoFault fault, int64_t at, FaultSpan span, IoOperation operation) {
            faulty(self.faulty_io).arm({.fault = fault, .at = at, .span = span, .operation = operation});
          },
          py::arg("fault"), py::arg("at"), py::arg("span") = FaultSpan::once, py::arg("operation") = IoOperation::any)
      .def_property_readonly("io_attempt_count",
                             [](const Runtime& self) { return faulty(self.faulty_io).attempt_count(); });
  bind_counter(runtime, "arm_memory", "memory_attempt_count", &Runtime::memory_faults);
  bind_counter(runtime, "arm_pin", "pin_attempt_count", &Runtime::pin_faults);
  bind_counter(runtime, "arm_start", "start_attempt_count", &Runtime::start_faults);
}

// What a program on several streams says beside its operations, and what tells two runs apart.
void bind_simulation(RuntimeClass& runtime) {
  runtime
      .def(
          "note_user",
          [](Runtime& self, uintptr_t address, uintptr_t stream) {
            self.device->note_user(pointer_of(address), {stream});
          },
          Release(), py::arg("address"), py::arg("stream"))
      .def(
          "follow",
          [](Runtime& self, uintptr_t stream, uintptr_t other) {
            const EventId event = self.device->create_event();
            self.device->record(event, {other});
            self.device->wait({stream}, event);
            self.device->destroy_event(event);
          },
          Release(), py::arg("stream"), py::arg("other"),
          "Later work of `stream` starts after what `other` did so far.")
      .def_property_readonly("schedule_digest", [](const Runtime& self) { return self.executor->schedule_digest(); });
}

}  // namespace

void bind_runtime(py::module_& module) {
  bind_enums(module);
  RuntimeClass runtime(module, "Runtime",
                       "Executor, device and io engine, shared by the stores of one process and device.");
  runtime
      .def(py::init(&make), py::arg("kind"), py::arg("device_index") = 0, py::arg("seed") = py::none(),
           py::arg("io") = IoEngineChoice::automatic, py::arg("faults") = FaultSeam::none)
      .def_property_readonly("io_name", [](const Runtime& self) { return self.io->name(); })
      .def_property_readonly("device_name", [](const Runtime& self) { return self.device->capabilities().name; })
      .def_property_readonly("is_seeded", [](const Runtime& self) { return self.executor->is_seeded(); })
      .def_property_readonly("is_host_addressable",
                             [](const Runtime& self) { return self.device->capabilities().host_addressable; })
      .def(
          "step", [](Runtime& self, int64_t count) { return self.executor->step(count); }, Release(), py::arg("count"),
          "Seeded: run at most `count` tasks.")
      .def(
          "drain", [](Runtime& self) { self.executor->drain(); }, Release(), "Wait until nothing is under way.")
      .def(
          "create_stream",
          [](Runtime& self, const std::string& name) { return self.device->create_stream(name).value; },
          py::arg("name"))
      .def(
          "allocate",
          [](Runtime& self, int64_t bytes, uintptr_t stream) {
            return reinterpret_cast<uintptr_t>(self.device->allocate(bytes, {stream}));
          },
          Release(), py::arg("bytes"), py::arg("stream"))
      .def(
          "free",
          [](Runtime& self, uintptr_t address, int64_t bytes, uintptr_t stream) {
            self.device->free(pointer_of(address), bytes, {stream});
          },
          Release(), py::arg("address"), py::arg("bytes"), py::arg("stream"))
      .def(
          "note_use",
          [](Runtime& self, uintptr_t address, int64_t bytes, uintptr_t stream, Use use) {
            self.device->note_use(pointer_of(address), bytes, {stream}, use);
          },
          Release(), py::arg("address"), py::arg("bytes"), py::arg("stream"), py::arg("use"))
      .def(
          "note_free",
          [](Runtime& self, uintptr_t address, int64_t bytes, uintptr_t stream) {
            self.device->note_free(pointer_of(address), bytes, {stream});
          },
          Release(), py::arg("address"), py::arg("bytes"), py::arg("stream"));
  bind_simulation(runtime);
  bind_faults(runtime);
}

}  // namespace memsys
