// Where the parts of a layer lie in a slot of the window. A read brings whole pages, so each part has a room of whole
// pages; its bytes begin in it where they began in their page of the file, or a little before, because kernels take
// other paths, with other last bits, for memory that is not aligned.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/weight_file.h"

namespace memsys {

inline constexpr int64_t kWeightAlignment = 64;

struct LayerPart {
  std::shared_ptr<WeightFile> file;
  int64_t offset_bytes = 0, size_bytes = 0;
};
using LayerParts = std::vector<LayerPart>;

// Offsets in the slot.
struct PartPlace {
  int64_t room_bytes = 0;     // where the room begins: what the read is given
  int64_t arrival_bytes = 0;  // where the read puts the part
  int64_t final_bytes = 0;    // where it is handed out: aligned, at or before the arrival
};

std::vector<PartPlace> lay_out(const LayerParts& parts);
// The room of the largest layer; at least a page. Throws InputError for a part without a file or out of its range.
int64_t layer_slot_bytes(const std::vector<LayerParts>& layers);

}  // namespace memsys
