"""Writes rope.json: frequencies of rotary embeddings as transformers computes them, for parameters of every form.

Each case has the parameters, the size of a head and `max_position_embeddings`, the frequencies, and the factor on
cosines and sines; `long` are the frequencies beyond the context of the pretraining. Call:

    python rope.py

Needs the PyPI packages torch and transformers.
"""

import copy
import json
from pathlib import Path

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HEAD = 16
CONTEXT = 4096

CASES = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 4.0, "partial_rotary_factor": 0.75},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 0.75},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.7, "mscale_all_dim": 1.2},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 128, "truncate": False},
    {"rope_type": "yarn", "factor": 0.5},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 256},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", "original_max_position_embeddings": 128, "short_factor": [1.0 + i / 8 for i in range(8)],
     "long_factor": [1.5 + i for i in range(8)]},
    {"rope_type": "longrope", "original_max_position_embeddings": 128, "attention_factor": 1.19, "factor": 3.0,
     "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    {"rope_type": "proportional"},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25},
    {"rope_type": "proportional", "partial_rotary_factor": 0.4, "factor": 8.0},
]


def case(parameters):
    """What transformers makes of these parameters."""
    parameters = {"rope_theta": 5000.0, **parameters}
    config = LlamaConfig(hidden_size=4 * HEAD, num_attention_heads=4, head_dim=HEAD, max_position_embeddings=CONTEXT,
                         rope_parameters=copy.deepcopy(parameters))
    function = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    frequencies, attention_factor = function(config, "cpu", seq_len=1)
    found = {"parameters": parameters, "frequencies": frequencies.tolist(), "attention_factor": attention_factor}
    if parameters.get("rope_type") == "longrope":
        found["long"] = function(config, "cpu", seq_len=CONTEXT)[0].tolist()
    return found


def main():
    found = {"head": HEAD, "context": CONTEXT, "cases": [case(parameters) for parameters in CASES]}
    (Path(__file__).resolve().parent / "rope.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
