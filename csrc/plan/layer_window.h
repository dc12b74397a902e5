// Which layers a window of W slots keeps, when a model of L layers is walked there and back. A walk is known in
// advance, so the layer whose next use is farthest goes, and what is needed soonest is fetched early: never in place
// of a layer that is needed sooner, and never in place of the present one. A training step then costs 2L - W loads the
// first time and 2(L - W) each time after that, however early or late the fetches are made.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace memsys {

// forward: a backward over the same layers follows. forward_only: another forward does, as in generation.
enum class Visit { forward, backward, forward_only };

struct WalkPosition {
  int64_t layer = 0;
  Visit visit = Visit::forward;
};

// held: the slot may not be emptied, because its layer is in use or on its way.
enum class SlotUse { idle, held };

struct WindowSlot {
  int64_t layer = -1;  // -1: the slot is free
  SlotUse use = SlotUse::idle;
};

struct WindowFetch {
  int64_t layer = 0;
  int64_t slot = 0;
  bool operator==(const WindowFetch&) const = default;
};

// After how many visits `layer` comes next, counted from the visit `at`: at least 1, and different for each layer.
int64_t next_use(int64_t layer_count, const WalkPosition& at, int64_t layer);

// The slot to load the layer of `at` to, which no slot has: a free one, else the idle one needed farthest in the
// future. Nothing if all are held.
std::optional<int64_t> choose_slot(int64_t layer_count, const WalkPosition& at, std::span<const WindowSlot> slots);

// What to fetch early during the visit `at`, and where to; nothing if that would cost a load later.
std::optional<WindowFetch> choose_fetch(int64_t layer_count, const WalkPosition& at, std::span<const WindowSlot> slots);

}  // namespace memsys
