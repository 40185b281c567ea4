"""Writes the tiny vision models of tests/fixtures/transformers_vision, with transformers' answers beside them.

They are families that candle-transformers computes. Folders and `expected.*` are as vision.py writes them, but the
configurations have the keys that published repositories have. Call:

    python long_tail_vision.py [FAMILY ...]

Needs the PyPI packages of vision.py.
"""

import sys

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, LlavaForConditionalGeneration
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

import vision
from vision import Cases, Dull, answers, ask, images, published_llava, randomize, save_weights, sentencepiece, write_json

vision.FIXTURES = vision.ROOT / "fixtures" / "transformers_vision"
# A row of an image ends with a token of its own, the last with another.
IMAGE, BREAK, END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
CHAT = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}{{- '[INST]' }}"
    "{%- for content in message['content'] %}{%- if content['type'] == 'image' %}{{- '[IMG]' }}"
    "{%- else %}{{- content['text'] }}{%- endif %}{%- endfor %}{{- '[/INST]' }}"
    "{%- else %}{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)


def pixtral(pictures, seed):
    """As mistral-community/pixtral-12b: images of any sides, and patches told apart by rows and columns."""
    cases = Cases("pixtral")
    tokenizer = sentencepiece(420, ["<pad>"])
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False)
                                  for word in ["[INST]", "[/INST]", IMAGE, BREAK, END]])
    number = tokenizer.token_to_id
    settings = dict(
        architectures=["LlavaForConditionalGeneration"], ignore_index=-100, image_seq_length=1,
        image_token_index=number(IMAGE), model_type="llava", projector_hidden_act="gelu",
        text_config=dict(
            hidden_size=48, head_dim=16, num_hidden_layers=2, intermediate_size=64, is_composition=True,
            max_position_embeddings=1024, model_type="mistral", num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-05, rope_theta=1000000000.0, sliding_window=None, vocab_size=tokenizer.get_vocab_size()),
        torch_dtype="float32",
        vision_config=dict(
            head_dim=8, hidden_act="silu", hidden_size=32, image_size=64, intermediate_size=48, is_composition=True,
            model_type="pixtral", num_attention_heads=4, num_hidden_layers=2, patch_size=8, rope_theta=10000.0,
            tie_word_embeddings=False),
        vision_feature_layer=-1, vision_feature_select_strategy="full")
    cases.folder.mkdir(parents=True, exist_ok=True)
    write_json(cases.folder / "config.json", settings)
    config = AutoConfig.from_pretrained(cases.folder)
    model = randomize(LlavaForConditionalGeneration(config), seed, 1.5)
    processor = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", model_max_length=1000000000000000019884624838656))
    write_json(cases.folder / "chat_template.json", {"chat_template": CHAT})
    write_json(cases.folder / "preprocessor_config.json", dict(
        do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=processor.image_mean,
        image_processor_type="PixtralImageProcessor", image_std=processor.image_std,
        patch_size={"height": 8, "width": 8}, processor_class="PixtralProcessor", resample=3, rescale_factor=1 / 255,
        size={"longest_edge": 64}))
    write_json(cases.folder / "processor_config.json", dict(
        image_break_token=BREAK, image_end_token=END, image_token=IMAGE, patch_size=8, processor_class="PixtralProcessor"))
    save_weights(cases.folder, {
        published_llava(name).replace("vision_tower.vision_model.", "vision_tower."): tensor
        for name, tensor in model.state_dict().items()})
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it.")]:
        inputs = processor(pictures[image], return_tensors="pt")
        height, width = (int(side) // 8 for side in inputs["image_sizes"][0])
        rows = [number(IMAGE)] * width + [number(BREAK)]
        ids = tokenizer.encode(ask(tokenizer, CHAT, question)).ids
        at = ids.index(number(IMAGE))
        ids = ids[:at] + (rows * height)[:-1] + [number(END)] + ids[at + 1:]
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output
        features = features[0] if isinstance(features, (list, tuple)) else features
        answers(cases, model, tokenizer, image, question, ids, inputs["pixel_values"][0],
                features.reshape(height * width, -1), 2, **inputs)
    cases.photographs(lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0], processor.image_mean,
                      processor.image_std, ["cat.png", "sky.png"])
    cases.save()


FAMILIES = {"pixtral": pixtral}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures = images()
    with torch.no_grad():
        for family in sys.argv[1:] or FAMILIES:
            for seed in range(100):
                try:
                    FAMILIES[family](pictures, seed)
                    break
                except Dull as reason:
                    print(f"seed {seed}: {reason}")
            else:
                sys.exit(f"{family}: no seed gives an answer worth comparing")
