#!/usr/bin/env python3
"""make_arch_goldens.py [CASE...]: tests/data/golden/archs.json, logits of tiny random models by
Hugging Face transformers in fp32, one or two per architecture.

The weights are not stored: both sides draw them from the same generator (tests/support/random.h),
seeded by the tensor's name. Of each prompt a few positions are kept, and of each every fourth logit.
Needs transformers and torch, which the tests do not."""

import json
import math
import pathlib
import sys
import tempfile

import numpy
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

OUT = pathlib.Path(__file__).parent.parent / "data" / "golden" / "archs.json"
VOCAB = 300
EVERY = 4  # logits kept
MASK = (1 << 64) - 1


def seed_of(name):  # FNV-1a, 64 bits
    value = 14695981039346656037
    for byte in name.encode():
        value = (value ^ byte) * 1099511628211 & MASK
    return value


def draw(seed, count):
    """SplitMix64 as numbers in [-1, 1), in fp32."""
    with numpy.errstate(over="ignore"):
        state = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(
            0x9E3779B97F4A7C15
        )
        z = (state ^ (state >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z ^= z >> numpy.uint64(31)
    return (z.view(numpy.int64) >> 40).astype(numpy.float32) * numpy.float32(2.0**-23)


def values(name, shape, mean, deviation):
    unit = draw(seed_of(name), math.prod(shape)) * numpy.float32(1.7320508)
    return (unit * numpy.float32(deviation) + numpy.float32(mean)).reshape(shape)


def spread(name, shape, norm_mean):
    """Mean and standard deviation of a tensor: logits and attention should be far from uniform."""
    if name.endswith("norm.weight"):
        return norm_mean, 0.2
    if len(shape) == 1:
        return 0.0, 0.3  # biases
    gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "lm_head")) else 1.0
    if "embed_tokens" in name:
        return 0.0, 1.0
    return 0.0, gain / math.sqrt(shape[1])


def base(model_type, **more):
    """What every config.json here says, in the spelling of published ones."""
    config = {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    config.update(more)
    return {key: value for key, value in config.items() if value is not None}


def gemma(model_type, **more):
    return base(
        model_type,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        head_dim=32,
        **more,
    )


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def longrope(pairs):
    return {
        "type": "longrope",
        "short_factor": [round(1.0 + 0.05 * i, 3) for i in range(pairs)],
        "long_factor": [round(1.5 + 0.4 * i, 3) for i in range(pairs)],
    }


# name: (config.json, lengths of prompts). Groups of 1, 2, 3 and 7 query heads; head sizes 16 to 48
# beside hidden / heads; prompts beyond every window and beyond every original RoPE length.
CASES = {
    "llama": (base("llama", num_key_value_heads=4, head_dim=16), [70]),
    "llama-3.1": (
        base("llama", num_attention_heads=6, head_dim=16, rope_theta=500000.0, rope_scaling=LLAMA3),
        [200],
    ),
    "llama-linear-bias": (
        base(
            "llama",
            head_dim=32,
            attention_bias=True,
            tie_word_embeddings=True,
            rope_scaling={"type": "linear", "factor": 4.0},
        ),
        [100],
    ),
    "llama-yarn": (base("llama", head_dim=16, rope_scaling=YARN), [150]),
    "mistral-window": (base("mistral", head_dim=16, sliding_window=24), [20, 90]),
    "mistral": (base("mistral", head_dim=32, sliding_window=None) | {"sliding_window": None}, [60]),
    "smollm3": (
        base(
            "smollm3",
            num_hidden_layers=5,
            head_dim=None,
            hidden_size=64,
            rope_theta=5000000.0,
            tie_word_embeddings=True,
            no_rope_layers=[1, 1, 1, 0, 1],
            no_rope_layer_interval=4,
            use_sliding_window=False,
        ),
        [80],
    ),
    "qwen2": (
        base(
            "qwen2",
            num_attention_heads=7,
            num_key_value_heads=1,
            hidden_size=112,
            rope_theta=1000000.0,
            sliding_window=32,
            use_sliding_window=False,
            max_window_layers=3,
        ),
        [70],
    ),
    "qwen2-window": (
        base(
            "qwen2",
            hidden_size=64,
            sliding_window=20,
            use_sliding_window=True,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
        [70],
    ),
    "qwen3": (
        base("qwen3", num_attention_heads=6, head_dim=32, rope_theta=1000000.0, attention_bias=False),
        [70],
    ),
    "qwen3-tied": (base("qwen3", head_dim=16, tie_word_embeddings=True, attention_bias=False), [40]),
    "gemma2": (
        gemma(
            "gemma2",
            num_hidden_layers=4,
            query_pre_attn_scalar=24,
            sliding_window=24,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=10.0,
        ),
        [20, 90],
    ),
    "gemma2-defaults": (
        gemma("gemma2", num_hidden_layers=2, query_pre_attn_scalar=32, sliding_window=16),
        [40],
    ),
    "gemma3": (
        gemma(
            "gemma3_text",
            num_hidden_layers=7,
            num_key_value_heads=1,
            query_pre_attn_scalar=40,
            sliding_window=24,
            sliding_window_pattern=6,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        [20, 120],
    ),
    "gemma3-multimodal": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 6,
                "vocab_size": VOCAB,
                "head_dim": 16,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "query_pre_attn_scalar": 16,
                "sliding_window": 16,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            "vision_config": {"model_type": "siglip_vision_model"},
        },
        [60],
    ),
    "phi3": (
        base(
            "phi3",
            hidden_size=96,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=40,
        ),
        [30, 90],
    ),
    "phi3-longrope": (
        base(
            "phi3",
            hidden_size=96,
            num_attention_heads=3,
            num_key_value_heads=3,
            original_max_position_embeddings=64,
            rope_scaling=longrope(16),
        ),
        [50, 64, 65, 130],
    ),
    "phi3-partial": (
        base(
            "phi3",
            hidden_size=128,
            num_key_value_heads=1,
            partial_rotary_factor=0.75,
            original_max_position_embeddings=64,
            tie_word_embeddings=True,
            rope_scaling=longrope(12),
        ),
        [40, 100],
    ),
    "olmo2": (
        base("olmo2", hidden_size=64, num_key_value_heads=4, rope_theta=500000.0, attention_bias=False),
        [70],
    ),
    "olmo2-gqa": (base("olmo2", hidden_size=96, num_attention_heads=6, attention_bias=False), [40]),
    "granite": (
        base(
            "granite",
            hidden_size=96,
            num_attention_heads=6,
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=True,
            embedding_multiplier=3.0,
            residual_multiplier=0.3,
            attention_multiplier=0.1,
            logits_scaling=2.0,
        ),
        [70],
    ),
}


def load(config):
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(config))
        read = AutoConfig.from_pretrained(folder)
    if "text_config" in config:
        read = read.text_config
    model = AutoModelForCausalLM.from_config(read, attn_implementation="eager")
    return model.float().eval()


def tensors_of(model, config):
    """What a checkpoint of the model holds: name to shape, mean and deviation."""
    tied = model.config.tie_word_embeddings
    norm_mean = 0.0 if "gemma" in config["model_type"] else 1.0
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        shape = list(tensor.shape)
        mean, deviation = spread(name, shape, norm_mean)
        tensors[name] = {"shape": shape, "mean": mean, "deviation": deviation}
    return tensors


def fill(model, tensors):
    state = {
        name: torch.from_numpy(values(name, t["shape"], t["mean"], t["deviation"]))
        for name, t in tensors.items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()


def prompt_of(name, length):
    return [int(x) for x in (draw(seed_of(name + " prompt"), length) + 1) * (VOCAB / 2)]


def kept_positions(length):
    return sorted({0, length // 3, length // 2, length - 2, length - 1})


def make(name, config, lengths):
    model = load(config)
    tensors = tensors_of(model, config)
    fill(model, tensors)
    prompts = []
    for length in lengths:
        ids = prompt_of(name, length)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
        positions = kept_positions(length)
        kept = logits[positions, ::EVERY]
        print(f"{name}: {length} tokens, logits {logits.min():.2f} to {logits.max():.2f}, "
              f"deviation {logits.std():.2f}")
        prompts.append(
            {
                "ids": ids,
                "positions": positions,
                "logits": [[float(f"{x:.6g}") for x in row] for row in kept],
            }
        )
    return {"name": name, "config": config, "tensors": tensors, "prompts": prompts}


def main():
    torch.manual_seed(0)
    names = sys.argv[1:] or list(CASES)
    cases = [make(name, *CASES[name]) for name in names]
    if sys.argv[1:]:
        return  # a try
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    OUT.write_text(
        '{"made_by":"tests/golden/make_arch_goldens.py, transformers %s, torch %s, fp32",\n'
        '"every":%d,"cases":[\n%s\n]}\n'
        % (transformers.__version__, torch.__version__.split("+")[0], EVERY, lines)
    )
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
