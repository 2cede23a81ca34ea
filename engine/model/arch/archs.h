// The rows of the table, one file per family beside this one.
#pragma once

#include "engine/model/arch/arch_table.h"

namespace headwater::arch {

extern const Arch kLlama;    // llama.cpp: Llama 1 to 3, SmolLM2, Mistral as GGUF and others
extern const Arch kMistral;  // config.json only
extern const Arch kSmolLm3;
extern const Arch kQwen2;  // qwen.cpp: Qwen2, Qwen2.5
extern const Arch kQwen3;
extern const Arch kGemma2;  // gemma.cpp
extern const Arch kGemma3;  // the text of the multimodal ones
extern const Arch kGemma3Text;
extern const Arch kPhi3;  // phi3.cpp: Phi-3, Phi-3.5, Phi-4, Phi-4-mini
extern const Arch kOlmo2;
extern const Arch kGranite;  // Granite 3 dense

}  // namespace headwater::arch
