// Reads tensors of a .npy or .safetensors file into memory: several pieces at once, each completed or a typed error.
#pragma once

#include <memory>
#include <string>

#include "engine/runtime.h"
#include "io/tensor_file.h"

namespace memsys {

class TensorReader {
 public:
  // Opens the file and believes its header only after checking it. Throws SpillError or CorruptionError.
  TensorReader(std::shared_ptr<Runtime> runtime, const std::string& path);
  const TensorFile& header() const { return header_; }
  // Reads one of header().tensors into `target`, of the entry's size_bytes. Blocks. Throws SpillError, or
  // CorruptionError where the file is shorter than it was.
  void read(const TensorEntry& entry, void* target) const;

 private:
  const std::shared_ptr<Runtime> runtime_;
  const std::shared_ptr<File> file_;
  const TensorFile header_;
};

}  // namespace memsys
