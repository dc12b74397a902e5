// Runs the tests of one floor: all, or those named. `--list` prints their names. Exit status: 0 passed, 1 failed,
// 77 when everything asked for was skipped (the reasons are printed).
#include <cstdio>
#include <cstring>

#include "csrc/check.h"

namespace check {
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
}  // namespace check

static bool is_wanted(const check::Test& test, int argc, char** argv) {
  for (int index = 1; index < argc; ++index)
    if (test.name == argv[index]) return true;
  return argc == 1;
}

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const auto& test : check::tests()) std::printf("%s\n", test.name.c_str());
    return 0;
  }
  int passed = 0, failed = 0, skipped = 0;
  for (const auto& test : check::tests()) {
    if (!is_wanted(test, argc, argv)) continue;
    try {
      test.body();
      ++passed;
      std::printf("ok   %s\n", test.name.c_str());
    } catch (const check::Skip& reason) {
      ++skipped;
      std::printf("skip %s: %s\n", test.name.c_str(), reason.what());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAIL %s: %s\n", test.name.c_str(), error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  if (failed > 0 || passed + skipped == 0) return 1;
  return passed == 0 ? 77 : 0;
}
