// The folder that spill files go to: opened once under the rules that keep other users out, and held by descriptor,
// so that the folder checked is the folder used.
#pragma once

#include <string>

#include "io/descriptor.h"

namespace memsys {

// Refuses, by SpillError with a remedy, a folder that is missing, no folder, a symbolic link, or writable by
// everybody without the sticky bit (others could then rename or remove what is in it).
Descriptor open_spill_folder(const std::string& folder);

enum class NamelessWay { tmpfile, unlinked };
struct NamelessFile {
  Descriptor descriptor;
  NamelessWay way = NamelessWay::tmpfile;
};
// A file without a name in the folder, open for reading and writing, mode 0600.
NamelessFile create_nameless(const Descriptor& folder, const std::string& name_of_folder);

}  // namespace memsys
