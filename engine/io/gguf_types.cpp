// The types of a GGUF file's values and tensors, by the ids the format gives them.
#include <iterator>
#include <string>

#include "engine/io/gguf.h"

namespace headwater {
namespace {

constexpr std::string_view kValueTypes[] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

constexpr GgmlType kStorage[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},    {42, "Q2_0", 64, 18},
};

// Once in the format; the file's maker has to convert it again.
struct RemovedType {
  int32_t id;
  std::string_view name;
};
constexpr RemovedType kRemoved[] = {
    {4, "Q4_2"},
    {5, "Q4_3"},
    {31, "Q4_0_4_4"},
    {32, "Q4_0_4_8"},
    {33, "Q4_0_8_8"},
    {36, "IQ4_NL_4_4"},
    {37, "IQ4_NL_4_8"},
    {38, "IQ4_NL_8_8"},
};

}  // namespace

std::string_view gguf_type_name(GgufType type) { return kValueTypes[static_cast<size_t>(type)]; }

const GgmlType* find_ggml_storage(int32_t id) {
  for (const GgmlType& type : kStorage) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

std::string describe_ggml_type(int32_t id) {
  const std::string number = " (id " + std::to_string(id) + ")";
  if (const GgmlType* type = find_ggml_storage(id))
    return "type " + std::string(type->name) + number;
  for (const RemovedType& type : kRemoved) {
    if (type.id != id) continue;
    return "type " + std::string(type.name) + number +
           ", which was removed from the format; get a newer file of the model";
  }
  return "type id " + std::to_string(id) + ", which the format does not define";
}

}  // namespace headwater
