#include "engine/model/gguf_parts.h"

#include <cstdio>
#include <filesystem>
#include <utility>

#include "engine/io/mapped_file.h"
#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr int64_t kMaxParts = 1024;

// "-00002-of-00007.gguf", counted from 1.
std::string part_suffix(int64_t idx, int64_t count) {
  char text[40];
  std::snprintf(
      text, sizeof(text), "-%05d-of-%05d.gguf", static_cast<int>(idx + 1), static_cast<int>(count));
  return text;
}

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

GgufFile open(const std::string& path, std::vector<MappedFile>& mapped, Refusals& refusals) {
  mapped.emplace_back(path);
  return GgufFile::parse(mapped.back().bytes(), path, refusals);
}

// What every part says of itself.
void check_part(const GgufFile& part, int64_t idx, int64_t count) {
  const int64_t number = part.required_integer("split.no");
  const int64_t of = part.required_integer("split.count");
  if (number != idx || of != count) {
    throw LoadError(part.name() + ": says it is part " + std::to_string(number + 1) + " of " +
                    std::to_string(of) + ", expected part " + std::to_string(idx + 1) + " of " +
                    std::to_string(count));
  }
}

// The other parts, from the first one's name.
void open_rest(GgufParts& parts,
               int64_t count,
               std::vector<MappedFile>& mapped,
               Refusals& refusals) {
  const std::string path = parts.files.front().name();
  const std::string suffix = part_suffix(0, count);
  const int64_t number = parts.files.front().integer("split.no").value_or(0);
  if (!path.ends_with(suffix) || number != 0) {
    throw LoadError(path + ": is part " + std::to_string(number + 1) + " of a model split in " +
                    std::to_string(count) + " files; give the first one, whose name ends in " +
                    suffix);
  }
  const std::string prefix = path.substr(0, path.size() - suffix.size());
  const auto part_path = [&](int64_t idx) { return prefix + part_suffix(idx, count); };
  std::string missing;
  for (int64_t i = 1; i < count; ++i) {
    if (file_exists(part_path(i))) continue;
    missing += (missing.empty() ? "" : ", ") + quote(file_name(part_path(i)));
  }
  if (!missing.empty()) {
    refusals.add(path + ": the model is split in " + std::to_string(count) +
                 " files; not in its folder: " + missing);
  }
  for (int64_t i = 1; i < count; ++i) {
    if (!file_exists(part_path(i))) continue;
    refusals.attempt([&] {
      GgufFile file = open(part_path(i), mapped, refusals);
      check_part(file, i, count);
      parts.tensors.add(file);
      parts.files.push_back(std::move(file));
    });
  }
  const int64_t num_tensors = parts.files.front().required_integer("split.tensors.count");
  const auto found = std::ssize(parts.tensors.tensors());
  if (std::ssize(parts.files) == count && num_tensors != found) {
    refusals.add(path + ": the parts hold " + std::to_string(found) + " tensors, expected " +
                 std::to_string(num_tensors) + " by \"split.tensors.count\"");
  }
}

}  // namespace

GgufParts open_gguf(const std::string& path, std::vector<MappedFile>& mapped, Refusals& refusals) {
  GgufParts parts;
  parts.files.push_back(open(path, mapped, refusals));
  const GgufFile& first = parts.files.front();
  parts.tensors.add(first);
  const int64_t count = first.integer("split.count", {0, kMaxParts}).value_or(1);
  if (count > 1) refusals.attempt([&] { open_rest(parts, count, mapped, refusals); });
  return parts;
}

}  // namespace headwater
