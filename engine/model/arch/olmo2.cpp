// OLMo 2: norms behind each branch only, and over the whole rows of q and k.
#include "engine/model/arch/archs.h"
#include "engine/model/arch/tensor_names.h"

namespace headwater::arch {

constinit const Arch kOlmo2 = {
    .name = "olmo2",
    .gguf_name = "olmo2",
    .hf_name = "olmo2",
    .norm_before = false,
    .norm_after = true,
    .qk_norm = QkNorm::kRow,
    .defaults = {.rms_eps = 1e-5},
    .gguf_tensors = kGgufTensors,
    .hf_tensors = with_post_norms(kHfTensors),
};

}  // namespace headwater::arch
