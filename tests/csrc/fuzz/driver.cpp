// Runs a fuzz target without libFuzzer, whose runtime few machines have: `fuzz_NAME [--runs N] [--seconds S] [--seed K]
// [--artifacts DIR] [--emit DIR] [CORPUS_DIR | FILE]...`. One seed and one corpus are one sequence of inputs. Inputs
// that reach code or repetitions not seen before are kept in memory and changed further (g++ and clang both call
// __sanitizer_cov_trace_pc for -fsanitize-coverage=trace-pc). What kills the process is first written to --artifacts;
// given a FILE, that one input alone is run. --emit writes every 25th input, to be compared with other readers.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "csrc/fuzz/random.h"
#include "csrc/fuzz/target.h"

namespace {

constexpr size_t kMapSize = 1 << 16;
constexpr size_t kMaxInputBytes = 1024;
constexpr size_t kMaxKept = 20'000;
constexpr unsigned kHangSeconds = 60;  // for 4096 inputs
constexpr int64_t kEmitEvery = 25;

// What the input under way has touched. Plain arrays: the callback may call nothing that is itself instrumented.
uint8_t counts[kMapSize];
uint32_t touched[kMapSize];
size_t touched_count = 0;
uint8_t seen[kMapSize];
uintptr_t previous = 0;

std::string artifacts = ".";
std::string input;

struct Options {
  int64_t runs = 0;
  double seconds = 0;
  uint64_t seed = 1;
  std::string emit;
  std::vector<std::string> sources;
};

}  // namespace

// A finding ends in abort(), whoever makes it.
#define EXPORTED extern "C" __attribute__((visibility("default"), used))
EXPORTED const char* __asan_default_options() { return "abort_on_error=1"; }
EXPORTED const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

EXPORTED void __sanitizer_cov_trace_pc() {
  // Relative to the program, so that chance does not enter by its address.
  const auto place =
      reinterpret_cast<uintptr_t>(__builtin_return_address(0)) - reinterpret_cast<uintptr_t>(&LLVMFuzzerTestOneInput);
  const size_t edge = (place ^ previous) % kMapSize;
  previous = place >> 1;
  if (counts[edge] == 0) touched[touched_count++] = static_cast<uint32_t>(edge);
  if (counts[edge] < 255) ++counts[edge];
}

namespace {

// In a dying process: the file's name says what the bytes are, so that the same finding is kept once.
void keep_input() {
  uint64_t hash = 0xcbf29ce484222325U;
  for (const char byte : input) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3U;
  const std::string path = artifacts + "/crash-" + std::to_string(hash);
  std::ofstream(path, std::ios::binary).write(input.data(), static_cast<std::streamsize>(input.size()));
  std::fprintf(stderr, "the input is in %s\n", path.c_str());
}

void die(int signal) {
  std::fprintf(stderr, "signal %d%s\n", signal, signal == SIGALRM ? ": an input takes too long" : "");
  keep_input();
  ::_exit(1);
}

// Whether the input reached something new.
bool run_input() {
  touched_count = 0;
  previous = 0;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  bool is_new = false;
  for (size_t index = 0; index < touched_count; ++index) {
    const uint32_t edge = touched[index];
    const auto bucket = static_cast<uint8_t>(1u << (std::bit_width(counts[edge]) - 1));
    is_new = is_new || (seen[edge] & bucket) == 0;
    seen[edge] |= bucket;
    counts[edge] = 0;
  }
  return is_new;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> read_corpus(const std::vector<std::string>& sources) {
  std::vector<std::filesystem::path> paths;
  for (const std::string& source : sources)
    for (const auto& entry : std::filesystem::directory_iterator(source))
      if (entry.is_regular_file()) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const auto& path : paths) corpus.push_back(read_file(path).substr(0, kMaxInputBytes));
  return corpus;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int index = 1; index < argc; ++index) {
    const std::string name = argv[index];
    const char* value = index + 1 < argc ? argv[index + 1] : "";
    if (!name.starts_with("--")) {
      options.sources.push_back(name);
      continue;
    }
    ++index;
    if (name == "--runs")
      options.runs = std::atoll(value);
    else if (name == "--seconds")
      options.seconds = std::atof(value);
    else if (name == "--seed")
      options.seed = std::strtoull(value, nullptr, 10);
    else if (name == "--artifacts")
      artifacts = value;
    else if (name == "--emit")
      options.emit = value;
    else
      std::exit(2);
  }
  return options;
}

void draw_input(const std::vector<std::string>& corpus, fuzz::Random& random) {
  // Half of them from what was kept last, where the newest code is.
  const size_t recent = std::min<size_t>(corpus.size(), 64);
  input = random.one_in(2) ? random.pick(corpus) : corpus[corpus.size() - 1 - random.below(recent)];
  if (random.one_in(16)) {
    const std::string& other = random.pick(corpus);
    input = input.substr(0, random.below(input.size() + 1)) + other.substr(random.below(other.size() + 1));
  }
  for (size_t change = 1 + random.below(4); change > 0; --change) {
    const size_t size = std::min(input.size(), kMaxInputBytes);
    input.resize(kMaxInputBytes);
    input.resize(LLVMFuzzerCustomMutator(reinterpret_cast<uint8_t*>(input.data()), size, kMaxInputBytes,
                                         static_cast<unsigned>(random.bits())));
  }
}

int fuzz_from(const Options& options) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  std::vector<std::string> corpus = read_corpus(options.sources);
  if (corpus.empty()) corpus.emplace_back();
  const size_t given_count = corpus.size();
  for (const std::string& one : std::vector<std::string>(corpus)) {
    input = one;
    run_input();
  }
  fuzz::Random random(options.seed);
  int64_t runs = 0;
  const auto is_over = [&] {
    if (options.seconds > 0 && runs % 256 == 0 && elapsed() >= options.seconds) return true;
    return options.runs > 0 ? runs >= options.runs : options.seconds <= 0;
  };
  for (; !is_over(); ++runs) {
    if (runs % 4096 == 0) ::alarm(kHangSeconds);
    draw_input(corpus, random);
    if (!options.emit.empty() && runs % kEmitEvery == 0)
      std::ofstream(options.emit + "/" + std::to_string(runs), std::ios::binary) << input;
    if (run_input() && corpus.size() < kMaxKept) corpus.push_back(input);
  }
  const auto edges = std::count_if(std::begin(seen), std::end(seen), [](uint8_t buckets) { return buckets != 0; });
  std::printf("{\"runs\": %lld, \"seed\": %llu, \"seconds\": %.1f, \"corpus\": %zu, \"kept\": %zu, \"edges\": %lld}\n",
              static_cast<long long>(runs), static_cast<unsigned long long>(options.seed), elapsed(), given_count,
              corpus.size() - given_count, static_cast<long long>(edges));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  for (const int signal : {SIGABRT, SIGALRM}) std::signal(signal, die);
  if (options.sources.size() == 1 && std::filesystem::is_regular_file(options.sources[0])) {
    input = read_file(options.sources[0]);
    run_input();
    return 0;
  }
  return fuzz_from(options);
}
