// See layer_window.h: Belady's rule over a walk that is known.
#include "plan/layer_window.h"

#include <algorithm>
#include <vector>

namespace memsys {
namespace {

std::optional<int64_t> free_slot(std::span<const WindowSlot> slots) {
  for (size_t index = 0; index < slots.size(); ++index)
    if (slots[index].layer < 0) return static_cast<int64_t>(index);
  return std::nullopt;
}

// Of the layers that no slot has, the one needed first; -1 if there is none.
int64_t soonest_absent(int64_t layer_count, const WalkPosition& at, std::span<const WindowSlot> slots) {
  std::vector<bool> is_present(static_cast<size_t>(layer_count), false);
  for (const WindowSlot& slot : slots)
    if (slot.layer >= 0) is_present[static_cast<size_t>(slot.layer)] = true;
  int64_t soonest = -1;
  for (int64_t layer = 0; layer < layer_count; ++layer) {
    if (is_present[static_cast<size_t>(layer)]) continue;
    if (soonest < 0 || next_use(layer_count, at, layer) < next_use(layer_count, at, soonest)) soonest = layer;
  }
  return soonest;
}

}  // namespace

int64_t next_use(int64_t layer_count, const WalkPosition& at, int64_t layer) {
  switch (at.visit) {
    case Visit::forward:
      return layer > at.layer ? layer - at.layer : 2 * layer_count - 1 - at.layer - layer;
    case Visit::backward:
      return layer < at.layer ? at.layer - layer : at.layer + layer + 1;
    case Visit::forward_only:
      return layer > at.layer ? layer - at.layer : layer_count - at.layer + layer;
  }
  return 0;
}

std::optional<int64_t> choose_slot(int64_t layer_count, const WalkPosition& at, std::span<const WindowSlot> slots) {
  if (const auto free = free_slot(slots)) return free;
  std::optional<int64_t> chosen;
  int64_t farthest = -1;
  for (size_t index = 0; index < slots.size(); ++index) {
    const int64_t distance = next_use(layer_count, at, slots[index].layer);
    if (slots[index].use == SlotUse::held || distance <= farthest) continue;
    farthest = distance;
    chosen = static_cast<int64_t>(index);
  }
  return chosen;
}

std::optional<WindowFetch> choose_fetch(int64_t layer_count, const WalkPosition& at,
                                        std::span<const WindowSlot> slots) {
  const int64_t layer = soonest_absent(layer_count, at, slots);
  if (layer < 0 || slots.empty()) return std::nullopt;
  if (const auto free = free_slot(slots)) return WindowFetch{layer, *free};
  const auto distance = [&](const WindowSlot& slot) { return next_use(layer_count, at, slot.layer); };
  const auto farthest = std::max_element(
      slots.begin(), slots.end(),
      [&](const WindowSlot& left, const WindowSlot& right) { return distance(left) < distance(right); });
  // Another than the farthest would be missed sooner: better to wait until the farthest is free to go.
  const bool must_stay = farthest->use == SlotUse::held || farthest->layer == at.layer;
  if (must_stay || distance(*farthest) < next_use(layer_count, at, layer)) return std::nullopt;
  return WindowFetch{layer, farthest - slots.begin()};
}

}  // namespace memsys
