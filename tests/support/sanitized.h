// kSanitized: whether a sanitizer watches; it slows code down ten to a hundred times, so the
// longest tests do less under one: the same paths, fewer repetitions.
#pragma once

namespace headwater {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace headwater
