// Responder: one generation as the JSON of its endpoint, streamed or whole. Fed on the executor of
// its Generation; not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "server/api/json_body.h"
#include "server/api/openai_schema.h"
#include "server/api/submit.h"

namespace headwater::api {

class Responder {
 public:
  virtual ~Responder() = default;
  // Streamed: the chunks that this delta makes. Whole: collects and returns none.
  virtual std::vector<std::string> on_delta(Delta delta) = 0;
  // After the last delta. Streamed: the usage chunk if one was asked for (no [DONE]). Whole: the
  // body, as the only element.
  virtual std::vector<std::string> finish(const GenerationUsage& usage) = 0;
};

// A request ready for Service::submit, and who turns its output into JSON.
struct PreparedGeneration {
  GenerationRequest request;
  std::unique_ptr<Responder> responder;
  bool stream = false;
  std::vector<std::string> ignored;  // fields without effect, for the log
};

// What every chunk of one reply begins with: {"id":...,"object":...,"created":...,"model":...
// id_prefix: "chatcmpl-"; object: "chat.completion.chunk"
std::string make_head(const std::string& id_prefix,
                      const std::string& object,
                      const std::string& model);

// {id, object, created, model, choices[, usage]}; usage: null pointer leaves the key out.
std::string reply_text(const std::string& head, const Json& choices, const Json* usage);

// One choice of a stream as a chunk, with "usage" as the stream options say.
std::string chunk_text(const std::string& head,
                       Json choice,
                       const StreamOptions& stream,
                       const GenerationUsage& so_far);
// The chunk with empty choices before [DONE], if it was asked for.
std::vector<std::string> usage_chunks(const std::string& head,
                                      const StreamOptions& stream,
                                      const GenerationUsage& usage);

Json usage_json(const GenerationUsage& usage);
Json finish_json(FinishReason finish);  // "stop", "length" or null
Json stop_reason_json(const StopReason& reason);

// The token alone as valid UTF-8, control tokens spelled out.
std::string token_string(const Tokenizer& tokenizer, int32_t id);
// Finite: JSON has no infinity, and clients know -9999 as "too unlikely".
double finite_logprob(float logprob);

}  // namespace headwater::api
