#!/bin/sh
# From a bare Debian 12 machine to an answer of a real language model: sh docker/quickstart.sh
# Installs the dependencies, builds the server, gets a small model, serves it on 127.0.0.1, asks one
# question and stops the server again. A second run takes seconds.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
server=build/release/bin/headwater
log=build/quickstart.log
question='Write one sentence about the sea.'

step() { printf '\n[%s/5] %s\n' "$1" "$2"; }

fail() {
  printf '\nquickstart: %s\n' "$1" >&2
  shift
  printf '  %s\n' "$@" >&2
  exit 1
}

step 1 "Dependencies (Debian packages)"
sh docker/install-deps.sh || fail "the packages are not all there." \
  "The lines above say what is missing. Install it and run this again."

step 2 "Build (the first time takes some minutes)"
sh docker/build.sh headwater || fail "the build failed." \
  "If a compiler was killed, memory ran out: run  BUILD_JOBS=1 sh docker/quickstart.sh" \
  "If the tree was configured for something else: remove build/release and run this again."

step 3 "Model (SmolLM2-135M-Instruct, 98 MB)"
model=$(sh docker/fetch-model.sh) || fail "the model is not there." \
  "To serve a model you have:  $server serve --model PATH"
echo "$model"

step 4 "Server"
# curl's exit status 7: nothing listens there.
port=8000
until status=0; curl --silent --output /dev/null --max-time 2 "http://127.0.0.1:$port/" || status=$?
  [ "$status" -eq 7 ]; do
  port=$((port + 1))
  [ $port -lt 8100 ] || fail "no free port between 8000 and 8099." "Stop a server there first."
done
$server serve --model "$model" --host 127.0.0.1 --port $port --grpc-port 0 >"$log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || true' EXIT
trap 'exit 1' INT TERM
url=http://127.0.0.1:$port

show_log() { tail -n 20 "$log" | sed 's/^/  | /' >&2; }

printf 'starting on %s ' "$url"
waited=0
until curl --silent --fail --output /dev/null --max-time 2 $url/readyz; do
  kill -0 $pid 2>/dev/null || {
    show_log
    fail "the server ended before it was ready." "Its last lines are above; all of them: $log"
  }
  [ $waited -lt 120 ] || {
    show_log
    fail "the server was not ready after $waited seconds." "All of its output: $log"
  }
  printf .
  sleep 1
  waited=$((waited + 1))
done
echo ' ready'

step 5 "One question"
body='{"messages":[{"role":"user","content":"'$question'"}],"max_tokens":64,"temperature":0}'
echo "curl $url/v1/chat/completions -H 'Content-Type: application/json' -d '$body'"
reply=$(curl --silent --show-error --fail-with-body --max-time 120 $url/v1/chat/completions \
  -H 'Content-Type: application/json' -d "$body") || {
  show_log
  fail "the server did not answer: ${reply:-no reply}" "All of its output: $log"
}
answer=$(printf '%s\n' "$reply" |
  sed -n 's/.*"content":"\(\([^"\\]\|\\.\)*\)".*/\1/p' |
  sed 's/\\n/\n/g; s/\\"/"/g; s/\\\\/\\/g')
[ -n "$answer" ] || fail "the reply holds no answer: $reply" "All of the server's output: $log"
printf '\n  You:    %s\n  Model:  %s\n' "$question" "$answer"

kill $pid
wait $pid || fail "the server did not stop cleanly." "All of its output: $log"
trap - EXIT

cat <<END

That was it; the server is stopped. To go on:

  Serve     $server serve --model ${model#"$root"/}
  Chat      $server chat
  Options   $server serve --help
  Tests     sh tests/run.sh

  From Python (pip install openai):

    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    reply = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": "$question"}])
    print(reply.choices[0].message.content)
END
