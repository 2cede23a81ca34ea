// The files of a GGUF model: one, or the parts of a split one.
#pragma once

#include <string>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/io/mapped_file.h"
#include "engine/io/refusals.h"
#include "engine/model/tensor_set.h"

namespace headwater {

struct GgufParts {
  std::vector<GgufFile> files;  // in order; the first holds the model's metadata, maybe no tensor
  TensorSet tensors;            // of all parts
};

// path: the file, or the first of a split model, "NAME-00001-of-0000N.gguf". Maps every part into
// mapped, which owns the bytes. Refuses a part that is missing, cut, or says it is another, by
// name. Throws LoadError when the first cannot be read at all.
GgufParts open_gguf(const std::string& path, std::vector<MappedFile>& mapped, Refusals& refusals);

}  // namespace headwater
