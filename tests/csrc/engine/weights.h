// Files of weights for the tests of what reads them: tensors of chosen sizes, packed (whole pages, with checksums) or
// plain (one after the other, without).
#pragma once

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "csrc/engine/rig.h"
#include "csrc/io/tensor_bytes.h"
#include "engine/weight_file.h"
#include "io/checksum.h"

namespace engine_test {

enum class Layout { packed, plain };

struct Weights {
  std::string path;
  std::vector<ByteSpan> tensors;     // in the file
  std::vector<unsigned char> bytes;  // the whole file

  const unsigned char* at(size_t tensor) const { return bytes.data() + tensors[tensor].begin_bytes; }
  bool is_at(size_t tensor, const void* found) const {
    return std::memcmp(found, at(tensor), static_cast<size_t>(tensors[tensor].size_bytes())) == 0;
  }
};

// A pad is a tensor too, named after the tensor before it.
inline std::string json_entry(const std::string& name, int64_t begin, int64_t end) {
  return "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(end - begin) + "],\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

inline Weights make_weights(const std::string& path, const std::vector<int64_t>& sizes, Layout layout) {
  Weights weights{path, {}, {}};
  std::string json = "{";
  int64_t at = 0;
  const auto add = [&](const std::string& name, int64_t size) {
    json += (json.size() > 1 ? "," : "") + json_entry(name, at, at + size);
    at += size;
  };
  for (size_t index = 0; index < sizes.size(); ++index) {
    weights.tensors.push_back({at, at + sizes[index]});
    add("t" + std::to_string(index), sizes[index]);
    const int64_t pad = align_up(at, kFilePageBytes) - at;
    if (layout == Layout::packed && pad > 0) add("pad" + std::to_string(index), pad);
  }
  json += "}";
  // A plain header ends where it ends: the phases of the tensors are anything.
  if (layout == Layout::packed)
    json.resize(static_cast<size_t>(align_up(static_cast<int64_t>(json.size()) + 8, kFilePageBytes) - 8), ' ');
  const std::string start = fixture::safetensors(json, 0);
  weights.bytes.assign(start.begin(), start.end());
  const Block content = pattern(at, sizes.size() + 77);
  weights.bytes.insert(weights.bytes.end(), content.data(), content.data() + at);
  for (ByteSpan& tensor : weights.tensors) {
    tensor.begin_bytes += static_cast<int64_t>(start.size());
    tensor.end_bytes += static_cast<int64_t>(start.size());
  }
  return weights;
}

inline void store(const Weights& weights) {
  std::ofstream file(weights.path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(weights.bytes.data()), static_cast<std::streamsize>(weights.bytes.size()));
}

inline Weights write_weights(const Folder& folder, const std::vector<int64_t>& sizes, Layout layout,
                             const std::string& name = "model.safetensors") {
  Weights weights = make_weights(folder.path() + "/" + name, sizes, layout);
  store(weights);
  return weights;
}

inline std::vector<uint32_t> checksums_of(const Weights& weights, size_t tensor, int64_t unit_bytes) {
  std::vector<uint32_t> values;
  const ByteSpan& span = weights.tensors[tensor];
  for (int64_t at = 0; at < span.size_bytes(); at += unit_bytes)
    values.push_back(crc32c(weights.at(tensor) + at, std::min(unit_bytes, span.size_bytes() - at)));
  return values;
}

inline void give_checksums(WeightFile& file, const Weights& weights, int64_t unit_bytes) {
  for (size_t tensor = 0; tensor < weights.tensors.size(); ++tensor)
    file.set_checksums(weights.tensors[tensor].begin_bytes, weights.tensors[tensor].size_bytes(), unit_bytes,
                       checksums_of(weights, tensor, unit_bytes));
}

inline std::shared_ptr<WeightFile> open_weights(const std::shared_ptr<Runtime>& runtime, const Weights& weights,
                                                VerifyMode verify = VerifyMode::first,
                                                DirectMode direct = DirectMode::automatic) {
  return WeightFile::open(runtime, weights.path, direct, verify);
}

// Ways to read that must not differ: both engines, and a schedule drawn from a seed.
inline std::vector<std::shared_ptr<Runtime>> all_runtimes(FaultSeam faults = FaultSeam::none) {
  std::vector<std::shared_ptr<Runtime>> runtimes;
  runtimes.push_back(make_runtime({.seed = {}, .io = {.choice = IoEngineChoice::threads}, .faults = faults}));
  runtimes.push_back(make_runtime({.seed = 11, .io = {}, .faults = faults}));
  if (probe_uring(nullptr))
    runtimes.push_back(make_runtime({.seed = {}, .io = {.choice = IoEngineChoice::uring}, .faults = faults}));
  return runtimes;
}

}  // namespace engine_test
