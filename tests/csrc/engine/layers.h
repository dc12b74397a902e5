// Models of a few layers in files, and the walk of a training step over them, with every byte looked at.
#pragma once

#include <string>
#include <vector>

#include "csrc/engine/weights.h"
#include "engine/layer_store.h"

namespace engine_test {

inline constexpr int64_t kPartCount = 3;

// Tensor number 3 * layer + part of one file is that part of that layer; sizes differ from layer to layer.
class Model {
 public:
  Model(const Folder& folder, int64_t layer_count, Layout layout, int64_t scale = 1)
      : layer_count_(layer_count), layout_(layout), weights_(write_weights(folder, sizes(scale), layout)) {}

  int64_t layer_count() const { return layer_count_; }
  const Weights& weights() const { return weights_; }
  std::vector<LayerParts> layers(const std::shared_ptr<Runtime>& runtime, VerifyMode verify = VerifyMode::first) const {
    const auto file = open_weights(runtime, weights_, verify);
    if (layout_ == Layout::packed) give_checksums(*file, weights_, kUnitBytes);
    std::vector<LayerParts> result(static_cast<size_t>(layer_count_));
    for (size_t tensor = 0; tensor < weights_.tensors.size(); ++tensor) {
      const ByteSpan& span = weights_.tensors[tensor];
      result[tensor / kPartCount].push_back({file, span.begin_bytes, span.size_bytes()});
    }
    return result;
  }
  void check(const LayerLease& lease) const {
    CHECK_EQUAL(lease.part_count(), kPartCount);
    for (int64_t index = 0; index < kPartCount; ++index) {
      const LayerBytes part = lease.part(index);
      const auto tensor = static_cast<size_t>(lease.layer() * kPartCount + index);
      CHECK_EQUAL(part.bytes, weights_.tensors[tensor].size_bytes());
      CHECK_EQUAL(reinterpret_cast<uintptr_t>(part.data) % kWeightAlignment, uintptr_t{0});
      CHECK(weights_.is_at(tensor, part.data));
    }
  }

 private:
  static constexpr int64_t kUnitBytes = 8 * kKiB;
  std::vector<int64_t> sizes(int64_t scale) const {
    std::vector<int64_t> result;
    for (int64_t layer = 0; layer < layer_count_; ++layer)
      for (const int64_t bytes : {20'000 + 1000 * layer, int64_t{4096}, int64_t{100}}) result.push_back(bytes * scale);
    return result;
  }

  int64_t layer_count_;
  Layout layout_;
  Weights weights_;
};

inline std::unique_ptr<LayerStore> make_layer_store(const std::shared_ptr<Runtime>& runtime, const Model& model,
                                                    int64_t window_layers, int64_t device_budget_bytes = -1,
                                                    VerifyMode verify = VerifyMode::first) {
  return std::make_unique<LayerStore>(LayerStoreOptions{.runtime = runtime,
                                                        .layers = model.layers(runtime, verify),
                                                        .window_layers = window_layers,
                                                        .device_budget_bytes = device_budget_bytes});
}

// What a model does with a layer; in seeded mode, some tasks run meanwhile.
inline void visit(const Runtime& runtime, LayerStore& store, const Model& model, int64_t layer, Visit kind) {
  const LeaseRef lease = store.acquire(layer, kind);
  model.check(*lease);
  runtime.executor->step((layer * 7 + store.stats().load_count) % 5);
  model.check(*lease);
}

inline void walk_step(const Runtime& runtime, LayerStore& store, const Model& model) {
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) visit(runtime, store, model, layer, Visit::forward);
  for (int64_t layer = model.layer_count(); layer-- > 0;) visit(runtime, store, model, layer, Visit::backward);
}

inline void walk_pass(const Runtime& runtime, LayerStore& store, const Model& model) {
  for (int64_t layer = 0; layer < model.layer_count(); ++layer)
    visit(runtime, store, model, layer, Visit::forward_only);
}

}  // namespace engine_test
