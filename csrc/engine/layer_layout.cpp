// See layer_layout.h.
#include "engine/layer_layout.h"

#include <algorithm>
#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {
namespace {

int64_t layer_room_bytes(const LayerParts& parts) {
  int64_t bytes = 0;
  for (const LayerPart& part : parts) {
    MEMSYS_EXPECT(part.file != nullptr, InputError, "a part of a layer has no file: give the file it is read from");
    const int64_t file_bytes = part.file->header().file_bytes;
    MEMSYS_EXPECT(part.offset_bytes >= 0 && part.size_bytes >= 0 && part.offset_bytes <= file_bytes &&
                      part.size_bytes <= file_bytes - part.offset_bytes,
                  InputError,
                  "a part of a layer, " + std::to_string(part.size_bytes) + " bytes at offset " +
                      std::to_string(part.offset_bytes) + " of '" + part.file->path() + "', is not all in its " +
                      std::to_string(file_bytes) + " bytes; give the range of a tensor");
    bytes = checked_add(bytes, WeightFile::room_bytes(part.offset_bytes, part.size_bytes));
  }
  return bytes;
}

}  // namespace

std::vector<PartPlace> lay_out(const LayerParts& parts) {
  std::vector<PartPlace> places;
  int64_t room = 0;
  for (const LayerPart& part : parts) {
    const int64_t phase = WeightFile::phase_of(part.offset_bytes);
    places.push_back({room, room + phase, room + align_down(phase, kWeightAlignment)});
    room += WeightFile::room_bytes(part.offset_bytes, part.size_bytes);
  }
  return places;
}

int64_t layer_slot_bytes(const std::vector<LayerParts>& layers) {
  int64_t bytes = kFilePageBytes;
  for (const LayerParts& parts : layers) bytes = std::max(bytes, layer_room_bytes(parts));
  return bytes;
}

}  // namespace memsys
