// A pattern of 8-byte words that depends on the position and a seed: what is written by one road and read by another
// proves that every byte arrived, and arrived in its place. The bodies see one index; launchers bring the loop.
#pragma once

#include <cstdint>

#include "kernels/hd.h"

namespace memsys {

// Words borrowed from memory that the launcher's side can reach, 8-byte aligned.
struct PatternSpan {
  uint64_t* words = nullptr;
  int64_t word_count = 0;
  uint64_t seed = 0;
};

// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): one changed bit of index or seed changes half of the word.
MEMSYS_HD inline uint64_t pattern_word(uint64_t seed, int64_t index) {
  uint64_t word = seed + (static_cast<uint64_t>(index) + 1) * 0x9e3779b97f4a7c15u;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
  return word ^ (word >> 31);
}

struct FillPattern {
  PatternSpan span;
  MEMSYS_HD void operator()(int64_t index) const { span.words[index] = pattern_word(span.seed, index); }
};

struct IsMismatch {
  PatternSpan span;
  MEMSYS_HD bool operator()(int64_t index) const { return span.words[index] != pattern_word(span.seed, index); }
};

}  // namespace memsys
