// Ids in the order of their last use: touch, remove and the oldest each in constant time and without allocation.
#pragma once

#include <cstdint>
#include <vector>

namespace memsys {

class RecencyList {
 public:
  explicit RecencyList(int64_t id_count) : links_(static_cast<size_t>(id_count) + 1) { clear(); }

  // Makes `id` the newest, whether or not it was there.
  void touch(int64_t id) {
    if (contains(id)) unlink(id);
    link_newest(id);
  }
  void remove(int64_t id) { unlink(id); }
  bool contains(int64_t id) const { return at(id).newer >= 0; }
  int64_t oldest() const { return at(end()).newer; }  // of a list that is not empty
  int64_t size() const { return size_; }
  void clear() {
    for (Link& link : links_) link = {};
    links_.back() = {end(), end()};
    size_ = 0;
  }

 private:
  struct Link {
    int64_t older = -1, newer = -1;  // -1: not in the list
  };
  // The ring's own place: before the oldest and after the newest.
  int64_t end() const { return static_cast<int64_t>(links_.size()) - 1; }
  Link& at(int64_t id) { return links_[static_cast<size_t>(id)]; }
  const Link& at(int64_t id) const { return links_[static_cast<size_t>(id)]; }

  void link_newest(int64_t id) {
    const int64_t newest = at(end()).older;
    at(id) = {newest, end()};
    at(newest).newer = id;
    at(end()).older = id;
    ++size_;
  }
  void unlink(int64_t id) {
    const Link link = at(id);
    at(link.older).newer = link.newer;
    at(link.newer).older = link.older;
    at(id) = {};
    --size_;
  }

  std::vector<Link> links_;
  int64_t size_ = 0;
};

}  // namespace memsys
