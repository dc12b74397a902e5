// The C++ tests' own small framework, because a machine without a network can fetch none. A test skips with its
// reason by SKIP(...); CHECK(...) fails it with file, line and expression.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Skip : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Test {
  std::string name;
  std::function<void()> body;
};
std::vector<Test>& tests();
struct Registrar {
  Registrar(std::string name, std::function<void()> body) { tests().push_back({std::move(name), std::move(body)}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::ostringstream text;
  text << file << ":" << line << ": " << what;
  throw Failure(text.str());
}

}  // namespace check

#define TEST(name)                                                    \
  static void test_##name();                                          \
  static const check::Registrar registrar_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) check::fail(__FILE__, __LINE__, "CHECK(" #condition ")"); \
  } while (false)
#define CHECK_EQUAL(left, right)                                                \
  do {                                                                          \
    const auto left_value = (left);                                             \
    const auto right_value = (right);                                           \
    if (!(left_value == right_value)) {                                         \
      std::ostringstream text_;                                                 \
      text_ << #left " == " #right ": " << left_value << " != " << right_value; \
      check::fail(__FILE__, __LINE__, text_.str());                             \
    }                                                                           \
  } while (false)
#define CHECK_THROWS(expression, type)                                                  \
  do {                                                                                  \
    bool thrown_ = false;                                                               \
    try {                                                                               \
      static_cast<void>(expression);                                                    \
    } catch (const type&) {                                                             \
      thrown_ = true;                                                                   \
    }                                                                                   \
    if (!thrown_) check::fail(__FILE__, __LINE__, #expression " did not throw " #type); \
  } while (false)
#define SKIP(reason) throw check::Skip(reason)
