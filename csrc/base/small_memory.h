// Memory for the engine's own small objects, apart from the heap that torch's tensors share. glibc serves a small
// request from the edge of a large free hole: one list node that outlives a layer then keeps the next tensor out of
// the hole that would fit it exactly, the heap grows, and the peak of a step with it (measured: by a quarter).
// Memory once taken is kept for the next object of its size, and never goes back. Under sanitizers this is the usual
// heap.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <type_traits>
#include <utility>
#include <vector>

namespace memsys {

// Thread-safe. `bytes` as in the allocation; larger than the largest class goes to the usual heap.
void* small_allocate(std::size_t bytes);
void small_free(void* pointer, std::size_t bytes) noexcept;

template <typename T>
struct SmallAllocator {
  using value_type = T;
  SmallAllocator() = default;
  template <typename U>
  SmallAllocator(const SmallAllocator<U>&) noexcept {}  // NOLINT: allocators convert
  T* allocate(std::size_t count) {
    static_assert(alignof(T) <= 16);
    return static_cast<T*>(small_allocate(count * sizeof(T)));
  }
  void deallocate(T* pointer, std::size_t count) noexcept { small_free(pointer, count * sizeof(T)); }
  friend bool operator==(const SmallAllocator&, const SmallAllocator&) { return true; }
};

template <typename T>
using SmallVector = std::vector<T, SmallAllocator<T>>;
template <typename K, typename V>
using SmallMap = std::map<K, V, std::less<K>, SmallAllocator<std::pair<const K, V>>>;
template <typename T>
using SmallSet = std::set<T, std::less<T>, SmallAllocator<T>>;

template <typename T, typename... Arguments>
std::shared_ptr<T> make_small(Arguments&&... arguments) {
  return std::allocate_shared<T>(SmallAllocator<T>{}, std::forward<Arguments>(arguments)...);
}

// A function object that std::function keeps in this memory.
template <typename F>
struct SmallFunction : F {
  explicit SmallFunction(F function) : F(std::move(function)) {}
  static void* operator new(std::size_t bytes) { return small_allocate(bytes); }
  static void operator delete(void* pointer, std::size_t bytes) noexcept { small_free(pointer, bytes); }
};

template <typename F>
SmallFunction<std::decay_t<F>> small_function(F&& function) {
  return SmallFunction<std::decay_t<F>>(std::forward<F>(function));
}

}  // namespace memsys
