// FieldReader: typed, bounded access to the members of a JSON object. The first error stays; after
// it every read leaves its target alone. JSON null counts as absent.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "server/api/json_body.h"

namespace headwater::api {

class FieldReader {
 public:
  // path: prefix of the names in messages ("stream_options."). object is not owned.
  explicit FieldReader(const Json& object, std::string path = "")
      : object_(object), path_(std::move(path)) {}

  const Status& status() const { return status_; }
  // Null if absent, null or after an error.
  const Json* find(const char* name) const;
  void fail(const std::string& name, const std::string& message);
  // Adopts the error of a nested reader.
  void merge(const Status& nested);

  void read(const char* name, bool& target);
  void read(const char* name, std::string& target);
  void read(const char* name, float& target);
  // Number without a fraction within [min, max].
  template <std::integral Int>
  void read(const char* name, int64_t min, int64_t max, Int& target) {
    if (const Json* value = find(name)) {
      int64_t wide = 0;
      if (to_integer(*value, name, min, max, wide)) target = static_cast<Int>(wide);
    }
  }
  // List of integers within [0, 2^31).
  void read_ids(const char* name, size_t max_count, std::vector<int32_t>& target);
  bool to_ids(const Json& list,
              const std::string& name,
              size_t max_count,
              std::vector<int32_t>& target);
  bool to_integer(
      const Json& value, const std::string& name, int64_t min, int64_t max, int64_t& target);

 private:
  const Json& object_;
  std::string path_;
  Status status_;
};

}  // namespace headwater::api
