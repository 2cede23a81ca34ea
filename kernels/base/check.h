// HW_CHECK(cond, "what {}", values...): a broken invariant aborts, in release too, with file and
// line.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace headwater::detail {

inline void append_values(std::ostringstream&) {}
template <typename T, typename... Rest>
void append_values(std::ostringstream& out, const T& value, const Rest&... rest) {
  out << ' ' << value;
  append_values(out, rest...);
}

template <typename... Values>
[[noreturn]] void check_failed(const char* file,
                               int line,
                               const char* cond,
                               const Values&... values) {
  std::ostringstream out;
  out << file << ':' << line << ": invariant broken: " << cond << ':';
  append_values(out, values...);
  std::fprintf(stderr, "%s\n", out.str().c_str());
  std::abort();
}

}  // namespace headwater::detail

#define HW_CHECK(cond, ...)                                                                    \
  do {                                                                                         \
    if (!(cond)) [[unlikely]]                                                                  \
      ::headwater::detail::check_failed(__FILE__, __LINE__, #cond __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
