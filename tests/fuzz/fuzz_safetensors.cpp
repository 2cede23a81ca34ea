// Any bytes as a safetensors file, as its index and as config.json.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/io/safetensors.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/tensor_set.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

template <typename Call>
void attempt(Call&& call) {
  try {
    call();
  } catch (const LoadError&) {
  }
}

// What a server reads, or what inspect reads on behind the first refusal.
void read_file(std::span<const std::byte> bytes, Refusals refusals) {
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "fuzz.safetensors", refusals);
  TensorSet tensors;
  tensors.add(file);
  for (const auto& [name, tensor] : tensors.tensors()) {
    if (tensor.format) decode_tensor(tensor);
  }
}

void read_config(std::string_view text) {
  const JsonObject config = JsonObject::parse(text, "config.json");
  for (const Arch* arch : arch_table()) attempt([&] { read_config_arch(*arch, config); });
}

}  // namespace
}  // namespace headwater

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto bytes = std::as_bytes(std::span(data, size));
  std::vector<std::string> refused;
  headwater::attempt([&] { headwater::read_file(bytes, headwater::Refusals::thrown()); });
  headwater::attempt([&] { headwater::read_file(bytes, headwater::Refusals::collected(refused)); });
  headwater::attempt([&] { headwater::parse_safetensors_index(text, "index.json"); });
  headwater::attempt([&] { headwater::read_config(text); });
  return 0;
}
