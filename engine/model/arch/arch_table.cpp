#include "engine/model/arch/arch_table.h"

#include "engine/io/quote.h"
#include "engine/model/arch/archs.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr const Arch* kArchs[] = {
    &arch::kLlama,
    &arch::kMistral,
    &arch::kSmolLm3,
    &arch::kQwen2,
    &arch::kQwen3,
    &arch::kGemma2,
    &arch::kGemma3,
    &arch::kGemma3Text,
    &arch::kPhi3,
    &arch::kOlmo2,
    &arch::kGranite,
};

const Arch& find(std::string_view name, std::string_view Arch::*column, const std::string& what) {
  std::string known;
  for (const Arch* arch : kArchs) {
    if ((arch->*column).empty()) continue;
    if (arch->*column == name) return *arch;
    known += (known.empty() ? "" : ", ") + std::string(arch->*column);
  }
  throw LoadError(what + " is " + quote(name) +
                  ", which is not supported; expected one of: " + known);
}

}  // namespace

std::span<const Arch* const> arch_table() { return kArchs; }

const Arch& find_gguf_arch(std::string_view name, const std::string& file) {
  return find(name, &Arch::gguf_name, file + ": metadata key \"general.architecture\"");
}

const Arch& find_hf_arch(std::string_view name, const std::string& file) {
  return find(name, &Arch::hf_name, file + ": key \"model_type\"");
}

}  // namespace headwater
