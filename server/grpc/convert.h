// convert: the protobuf messages <-> the types of server/api. Pure functions.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "headwater/v1/inference.pb.h"
#include "server/api/submit.h"
#include "server/config/config.h"

namespace headwater::grpc_api {

grpc::Status to_grpc(const Status& status);

// The options as OpenAI's completions or chat body would give them: one set of rules for both
// transports, with the field's name in every refusal.
Result<api::GenerationOptions> completion_options(const v1::SamplingParams& params,
                                                  const ServerConfig& config);
Result<api::GenerationOptions> chat_options(const v1::SamplingParams& params,
                                            const ServerConfig& config);

// Ids of a prompt. kInvalidArgument: one is not in the vocabulary.
Result<std::vector<int32_t>> to_tokens(const v1::TokenIds& tokens, int32_t vocab_size);

void to_piece(const api::Delta& delta, const Tokenizer& tokenizer, v1::Piece* piece);
void to_usage(const api::GenerationUsage& usage, v1::Usage* out);

}  // namespace headwater::grpc_api
