"""Tiny random vision models of each family, and what the reference implementations make of a few images and questions.

    python tests/references/vision.py [FAMILY ...]

needs torch, transformers, tokenizers, safetensors, pillow and numpy. Writes `tests/fixtures/vision/<family>/` in the
layout of the published repositories, with `expected.json` (image, question, tokens and text of each case) and
`expected.safetensors` (pixels, image features and first logits of each case) beside the model's own files.
All are transformers' own but Moondream 2, which is remote code on the hub, so that `moondream.py` beside this file says
the same in PyTorch.
"""

import copy
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures" / "vision"
TOKENS = 64
#: A greedy choice nearer than this to the next best could fall differently for reasons of rounding alone.
SMALLEST_GAP = 2e-3

PHOTOGRAPHS = ["cat.png", "coffee.png", "face.png", "sky.png"]
IMAGES = {"wide": (67, 45), "tall": (50, 121), "square": (40, 40), "large": (203, 149)}
CHAT_IMAGE_FIRST = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHAT_INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{' [/INST]' }}{% endif %}{% endfor %}"
)
CHAT_VISION_PAD = (
    "{% for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}{%- if message.content is string %}"
    "{{- message.content }}{%- else %}{%- for content in message.content %}"
    "{%- if content.type == 'image' or 'image' in content %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


CHAT_ONE_VISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sentences():
    cases = json.loads((ROOT / "references" / "english_small.json").read_text())["cases"]
    return [case["text"] for case in cases if case["text"].isascii()] * 4


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def images():
    """Slow waves with some noise, in colour: something of every frequency, and nothing that compresses to nothing."""
    (FIXTURES.parent / "vision_images").mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, (name, (width, height)) in enumerate(IMAGES.items()):
        random = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width]
        wave = lambda a, b, c: np.sin(x / a + y / b + c)
        channels = [wave(*(random.uniform(3, 25, 2)), random.uniform(0, 6)) * 90 + 128 for _ in range(3)]
        pixels = np.stack(channels, -1) + random.integers(-3, 4, (height, width, 1))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(FIXTURES.parent / "vision_images" / f"{name}.png", optimize=True)
        found[name] = image
    return found


def randomize(model, seed, scale=1.0):
    """Weights large enough that every part of the computation shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                is_norm = "norm" in name.lower() or ".ln" in name or "_ln." in name
                around = 1.0 if is_norm and name.endswith("weight") else 0.0
                parameter.copy_(around + 0.1 * noise)
            elif "embed" in name or "wte" in name or "pos_emb" in name:
                # Positions louder than words: a text that does not depend on where it stands soon runs in a circle.
                # All of one length, or the longest are said again and again.
                noise = noise / noise.norm(dim=-1, keepdim=True) * parameter.shape[-1] ** 0.5
                parameter.copy_((1.5 if "pos" in name else 0.5) * noise)
            else:
                inside = parameter[0].numel()
                parameter.copy_(scale * noise / inside**0.5)
    return model.eval().float()


def rounded(model):
    """Of a model that is saved as bfloat16: its weights as they are then."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())


def save_weights(folder, tensors, dtype=torch.float32, shards=1):
    tensors = {name: tensor.to(dtype).contiguous().clone() for name, tensor in tensors.items()}
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def gaps(logits):
    best = torch.stack(logits).topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).min())


class Dull(Exception):
    """The answers of these weights are not worth comparing with; others will do."""


class Cases:
    """What a family's cases come to, checked for being worth comparing with."""

    def __init__(self, family):
        self.folder, self.cases, self.tensors = FIXTURES / family, [], {}
        self.family = family

    def add(self, image, question, prompt, pixels, features, tokens, logits, text, **more):
        index = len(self.cases)
        gap = gaps(logits)
        if len(set(tokens)) <= len(tokens) // 5 or gap <= SMALLEST_GAP or len(tokens) < 8:
            raise Dull(f"{self.family} {image}: {len(set(tokens))} tokens of {len(tokens)} differ, gap {gap:.5f}")
        case = dict(image=f"{image}.png", question=question, prompt=prompt, tokens=tokens, text=text, **more)
        self.cases.append(case)
        self.tensors[f"{index}.pixels"] = pixels.float().contiguous().clone()
        self.tensors[f"{index}.features"] = features.float().contiguous().clone()
        self.tensors[f"{index}.logits"] = logits[0].float().contiguous().clone()
        print(f"{self.family} {image} {question!r}: {len(prompt)} in, {len(tokens)} out, gap {gap:.4f}, {text[:60]!r}")

    def photographs(self, process, mean, deviation, names=PHOTOGRAPHS):
        """What the processor makes of photographs, as the bytes that it scaled: no smaller unit is in them."""
        mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, deviation))
        self.scaling = dict(mean=mean.flatten().tolist(), deviation=deviation.flatten().tolist(), photographs=names)
        for name in names:
            bytes_ = (process(Image.open(ROOT / "fixtures" / "photographs" / name).convert("RGB")) * deviation + mean) * 255
            assert (bytes_ - bytes_.round()).abs().max() < 1e-3
            self.tensors[f"photograph.{name}"] = bytes_.round().to(torch.uint8).contiguous()

    def save(self):
        write_json(self.folder / "expected.json", {"cases": self.cases, "scaling": self.scaling})
        save_file(self.tensors, self.folder / "expected.safetensors")
        texts = {case["text"] for case in self.cases}
        if len(texts) != len(self.cases):
            raise Dull(f"{self.family}: two cases have one answer")


# BLIP ---------------------------------------------------------------------------------------------------------------


def wordpiece(size, special):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    return tokenizer


def blip(pictures, seed):
    from transformers import BlipConfig, BlipForConditionalGeneration
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    cases = Cases("blip")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kept = cases.folder / "tokenizer.json"
    # The trainer breaks ties by chance, so that a second run would change the fixture.
    tokenizer = Tokenizer.from_file(str(kept)) if kept.exists() else wordpiece(300, special)
    size = tokenizer.get_vocab_size()
    bos, sep = size, tokenizer.token_to_id("[SEP]")
    text = dict(vocab_size=size + 2, hidden_size=32, encoder_hidden_size=48, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=96, bos_token_id=bos,
                eos_token_id=2, pad_token_id=0, sep_token_id=sep, projection_dim=32)
    vision = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, image_size=32,
                  patch_size=8, projection_dim=32)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=32, image_text_hidden_size=16)
    config.architectures = ["BlipForConditionalGeneration"]
    model = randomize(BlipForConditionalGeneration(config), seed, 2.0)
    model.text_decoder.cls.predictions.bias.data[sep] -= 6.0
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    cases.folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(cases.folder)
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="BertTokenizer", do_lower_case=True, model_max_length=512, cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"))
    write_json(cases.folder / "preprocessor_config.json", dict(
        do_normalize=True, do_rescale=True, do_resize=True, image_processor_type="BlipImageProcessor",
        image_mean=processor.image_mean, image_std=processor.image_std, processor_class="BlipProcessor", resample=3,
        rescale_factor=1 / 255, size={"height": 32, "width": 32}))
    tensors = dict(model.state_dict())
    tensors = {name: tensor for name, tensor in tensors.items() if "decoder.cls.predictions.decoder" not in name}
    save_weights(cases.folder, tensors)
    for image, question in [("wide", ""), ("tall", "a picture of"), ("large", "a photograph of the river")]:
        pixels = processor(pictures[image], return_tensors="pt")["pixel_values"]
        asked = tokenizer.encode(question).ids if question else [bos, 2]
        inputs = dict(input_ids=torch.tensor([asked]))
        # `generate` hands the mask of all tokens to each step, as long as the whole text so far.
        out = model.generate(pixel_values=pixels, **inputs, max_new_tokens=TOKENS, do_sample=False,
                             output_logits=True, return_dict_in_generate=True)
        prompt = [bos] + asked[1:-1]
        tokens = out.sequences[0, len(prompt):].tolist()
        features = model.vision_model(pixel_values=pixels).last_hidden_state[0]
        kept = tokens[:-1] if tokens[-1] == sep else tokens
        cases.add(image, question, prompt, pixels, features, tokens, [step[0] for step in out.logits],
                  tokenizer.decode(prompt[1:] + kept), answer=tokenizer.decode(kept))
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"], processor.image_mean,
                      processor.image_std)
    cases.save()


def blip2_parts(text, image_token):
    """The parts of a configuration, whatever the text half is."""
    vision = dict(model_type="blip_2_vision_model", hidden_size=40, intermediate_size=64, num_hidden_layers=2,
                  num_attention_heads=4, image_size=32, patch_size=8, hidden_act="gelu", layer_norm_eps=1e-6,
                  qkv_bias=True, projection_dim=512)
    qformer = dict(model_type="blip_2_qformer", vocab_size=100, hidden_size=32, num_hidden_layers=3,
                   num_attention_heads=4, intermediate_size=48, cross_attention_frequency=2, encoder_hidden_size=40,
                   max_position_embeddings=512, position_embedding_type="absolute")
    return dict(text_config=text, vision_config=vision, qformer_config=qformer, num_query_tokens=6,
                image_token_index=image_token, image_text_hidden_size=256, tie_word_embeddings=False)


def blip2_files(cases, parts, processor, decoder_only):
    cases.folder.mkdir(parents=True, exist_ok=True)
    whole = dict(architectures=["Blip2ForConditionalGeneration"], model_type="blip-2", initializer_factor=1.0,
                 initializer_range=0.02, torch_dtype="bfloat16", use_decoder_only_language_model=decoder_only)
    write_json(cases.folder / "config.json", whole | parts)
    write_json(cases.folder / "preprocessor_config.json", dict(
        do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=processor.image_mean,
        image_processor_type="BlipImageProcessor", image_std=processor.image_std, processor_class="Blip2Processor",
        resample=3, rescale_factor=1 / 255, size={"height": 32, "width": 32}))
    write_json(cases.folder / "processor_config.json", dict(num_query_tokens=6, processor_class="Blip2Processor"))


def blip2_seen(model, pixels):
    """The rows that the text half gets of an image."""
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    found = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state
    return model.language_projection(found)[0]


def blip2(pictures, seed):
    from transformers import Blip2Config, Blip2ForConditionalGeneration
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    cases = Cases("blip2")
    tokenizer = byte_level(380, ["<pad>", "</s>", "<image>"])
    token = tokenizer.token_to_id
    begin = token("</s>")
    tokenizer.post_processor = processors.TemplateProcessing("</s> $A", "</s> $A $B", [("</s>", begin)])
    newline = tokenizer.encode("\n").ids[-1]
    size = tokenizer.get_vocab_size() + 3
    text = dict(model_type="opt", activation_dropout=0.0, activation_function="relu", attention_dropout=0.0,
                do_layer_norm_before=True, dropout=0.1, ffn_dim=64, hidden_size=48, init_std=0.02, layerdrop=0.0,
                max_position_embeddings=160, num_attention_heads=4, num_hidden_layers=2, vocab_size=size, prefix="</s>",
                word_embed_proj_dim=48, _remove_final_layer_norm=False, pad_token_id=token("<pad>"), bos_token_id=begin,
                eos_token_id=newline)
    parts = blip2_parts(text, token("<image>"))
    config = Blip2Config(**copy.deepcopy(parts))
    model = randomize(Blip2ForConditionalGeneration(config), seed, 1.5)
    rounded(model)
    model.language_model.tie_weights()
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    blip2_files(cases, parts, processor, decoder_only=True)
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="GPT2Tokenizer", bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>",
        add_bos_token=True, add_prefix_space=False, model_max_length=160))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "language_model.lm_head.weight"}
    save_weights(cases.folder, tensors, dtype=torch.bfloat16)
    for image, question in [("wide", ""), ("tall", "a picture of"), ("large", "Question: what is this? Answer:")]:
        pixels = processor(pictures[image], return_tensors="pt")["pixel_values"]
        ids = [token("<image>")] * 6 + tokenizer.encode(question).ids
        out = model.generate(input_ids=torch.tensor([ids]), pixel_values=pixels, max_new_tokens=TOKENS, do_sample=False,
                             eos_token_id=newline, output_logits=True, return_dict_in_generate=True)
        tokens = out.sequences[0, len(ids):].tolist()
        answer = tokenizer.decode(tokens[:-1] if tokens[-1] == newline else tokens)
        cases.add(image, question, ids, pixels, blip2_seen(model, pixels), tokens,
                  [step[0] for step in out.logits], answer, answer=answer)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"], processor.image_mean,
                      processor.image_std, ["cat.png"])
    cases.save()


def blip2_t5(pictures, seed):
    """With Flan-T5 as text half, as it is published."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    cases = Cases("blip2_t5")
    kept = cases.folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(kept)) if kept.exists() else byte_level(380, ["<pad>", "</s>", "<image>"])
    token = tokenizer.token_to_id
    end = token("</s>")
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", end)])
    size = tokenizer.get_vocab_size() + 3
    # Heads that are wider together than a row, and fewer distances with a number of their own than an answer has tokens.
    text = dict(model_type="t5", vocab_size=size, d_model=48, d_kv=16, d_ff=64, num_layers=3, num_decoder_layers=3,
                num_heads=4, relative_attention_num_buckets=8, relative_attention_max_distance=24, dropout_rate=0.1,
                layer_norm_epsilon=1e-6, initializer_factor=1.0, feed_forward_proj="gated-gelu", is_encoder_decoder=True,
                use_cache=True, pad_token_id=token("<pad>"), eos_token_id=end, decoder_start_token_id=token("<pad>"),
                tie_word_embeddings=False, n_positions=512, output_past=True)
    parts = blip2_parts(text, token("<image>"))
    config = Blip2Config(**copy.deepcopy(parts))
    model = Blip2ForConditionalGeneration(config)
    # Published with a matrix of its own, which is tied to the table only where a file has none.
    model.language_model.lm_head.weight = torch.nn.Parameter(torch.empty(size, 48))
    randomize(model, seed, 1.2)
    t5 = model.language_model
    with torch.no_grad():
        # Scores are not divided by the root of a head's size: the files' numbers are smaller for it.
        for name, parameter in t5.named_parameters():
            if name.endswith("Attention.q.weight"):
                parameter.mul_(0.5)
            if "relative_attention_bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    rounded(model)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    blip2_files(cases, parts, processor, decoder_only=False)
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>", pad_token="<pad>", unk_token="</s>",
        model_max_length=512))
    save_weights(cases.folder, dict(model.state_dict()), dtype=torch.bfloat16)
    for image, question in [("wide", ""), ("tall", "a picture of"), ("large", "Question: what is this? Answer:")]:
        pixels = processor(pictures[image], return_tensors="pt")["pixel_values"]
        ids = [token("<image>")] * 6 + tokenizer.encode(question).ids
        out = model.generate(input_ids=torch.tensor([ids]), pixel_values=pixels, max_new_tokens=TOKENS, do_sample=False,
                             eos_token_id=end, output_logits=True, return_dict_in_generate=True)
        tokens = out.sequences[0, 1:].tolist()
        answer = tokenizer.decode(tokens[:-1] if tokens[-1] == end else tokens)
        # What is repeated is what the decoder has read: neither the question nor the places of the image.
        out_again = model.generate(input_ids=torch.tensor([ids]), pixel_values=pixels, max_new_tokens=TOKENS, do_sample=False,
                                   eos_token_id=end, repetition_penalty=1.5, output_scores=True,
                                   return_dict_in_generate=True)
        if gaps([step[0] for step in out_again.scores]) <= SMALLEST_GAP:
            raise Dull(f"blip2_t5 {image}: too near with a penalty")
        penalized = out_again.sequences[0, 1:].tolist()
        if question and not set(penalized) & set(ids):
            raise Dull(f"blip2_t5 {image}: no token of the question is said")
        cases.add(image, question, ids, pixels, blip2_seen(model, pixels), tokens,
                  [step[0] for step in out.logits], answer, answer=answer, penalized=penalized)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"], processor.image_mean,
                      processor.image_std, ["cat.png"])
    cases.save()


# LLaVA --------------------------------------------------------------------------------------------------------------


def sentencepiece(size, more):
    """As Llama's: words with a mark before them, single bytes for what is not known."""
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    plain.train_from_iterator(sentences(), trainer)
    learned = json.loads(plain.to_str())["model"]
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    words += sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(merge) for merge in learned["merges"]]
    model = models.BPE({word: index for index, word in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True,
                       byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = plain.normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"] + more)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return tokenizer


def ask(tokenizer, template, question):
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return fast.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def expand(ids, token, count):
    at = ids.index(token)
    return ids[:at] + [token] * count + ids[at + 1:]


def clip_and_llama(tokenizer):
    vision = dict(model_type="clip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                  num_attention_heads=4, image_size=28, patch_size=7, projection_dim=32, vocab_size=512)
    text = dict(model_type="llama", hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=tokenizer.get_vocab_size() + 3, max_position_embeddings=512,
                rms_norm_eps=1e-5)
    return vision, text


def published_llava(name):
    """The names that the published files have; transformers renames when it loads."""
    for old, new in [("model.vision_tower.vision_model.", "vision_tower.vision_model."),
                     ("model.vision_tower.", "vision_tower.vision_model."),
                     ("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
                     ("model.multi_modal_projector.", "multi_modal_projector."),
                     ("model.image_newline", "image_newline")]:
        if name.startswith(old):
            return new + name[len(old):]
    raise KeyError(name)


def save_llava(cases, config, tokenizer, template, preprocessor, processor, model, **saving):
    cases.folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(cases.folder)
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        add_bos_token=True, add_eos_token=False, model_max_length=1000000000000000019884624838656))
    write_json(cases.folder / "chat_template.json", {"chat_template": template})
    write_json(cases.folder / "preprocessor_config.json", preprocessor)
    write_json(cases.folder / "processor_config.json", processor)
    tensors = {published_llava(name): tensor for name, tensor in model.state_dict().items()
               if not name.endswith("position_ids")}
    save_weights(cases.folder, tensors, **saving)


def clip_preprocessor(processor, kind, **more):
    return dict(crop_size={"height": 28, "width": 28}, do_center_crop=True, do_convert_rgb=True, do_normalize=True,
                do_rescale=True, do_resize=True, image_mean=processor.image_mean, image_processor_type=kind,
                image_std=processor.image_std, resample=3, rescale_factor=1 / 255, size={"shortest_edge": 28}, **more)


def answers(cases, model, tokenizer, image, question, ids, pixels, features, end, **inputs):
    out = model.generate(input_ids=torch.tensor([ids]), **inputs, max_new_tokens=TOKENS, do_sample=False,
                         eos_token_id=end, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    tokens = out.sequences[0, len(ids):].tolist()
    text = tokenizer.decode(tokens)
    cases.add(image, question, ids, pixels, features, tokens, [step[0] for step in out.logits], text, answer=text)


def llava(pictures, seed):
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    cases = Cases("llava")
    tokenizer = sentencepiece(420, ["<image>", "<pad>"])
    image_token = tokenizer.token_to_id("<image>")
    vision, text = clip_and_llama(tokenizer)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=16)
    config.architectures = ["LlavaForConditionalGeneration"]
    model = randomize(LlavaForConditionalGeneration(config), seed, 1.5)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    extra = dict(patch_size=7, vision_feature_select_strategy="default", image_token="<image>",
                 num_additional_image_tokens=1, processor_class="LlavaProcessor")
    save_llava(cases, config, tokenizer, CHAT_IMAGE_FIRST, clip_preprocessor(processor, "CLIPImageProcessor"), extra,
               model, shards=3)
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it.")]:
        pixels = processor(pictures[image], return_tensors="pt")["pixel_values"]
        ids = tokenizer.encode(ask(tokenizer, CHAT_IMAGE_FIRST, question)).ids
        features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
        answers(cases, model, tokenizer, image, question, expand(ids, image_token, 16), pixels, features, 2,
                pixel_values=pixels)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"], processor.image_mean,
                      processor.image_std)
    cases.save()


def llava_next(pictures, seed):
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    cases = Cases("llava_next")
    tokenizer = sentencepiece(420, ["<image>", "<pad>"])
    image_token = tokenizer.token_to_id("<image>")
    vision, text = clip_and_llama(tokenizer)
    grids = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    config = LlavaNextConfig(vision_config=vision, text_config=text, image_token_index=image_token,
                             image_grid_pinpoints=grids)
    config.architectures = ["LlavaNextForConditionalGeneration"]
    model = randomize(LlavaNextForConditionalGeneration(config), seed, 1.5)
    rounded(model)
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
                                           image_grid_pinpoints=grids)
    extra = dict(patch_size=7, vision_feature_select_strategy="default", image_token="<image>",
                 num_additional_image_tokens=1, processor_class="LlavaNextProcessor")
    preprocessor = clip_preprocessor(processor, "LlavaNextImageProcessor", do_pad=True, image_grid_pinpoints=grids,
                                     aspect_ratio_setting="anyres")
    save_llava(cases, config, tokenizer, CHAT_INSTRUCT, preprocessor, extra, model, dtype=torch.bfloat16)
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it."),
                            ("square", "Is it a square?")]:
        inputs = processor(pictures[image], return_tensors="pt")
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output
        features = features[0] if isinstance(features, (list, tuple)) else features
        ids = tokenizer.encode(ask(tokenizer, CHAT_INSTRUCT, question)).ids
        answers(cases, model, tokenizer, image, question, expand(ids, image_token, len(features)),
                inputs["pixel_values"][0], features, 2, **inputs)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"][0], processor.image_mean,
                      processor.image_std)
    cases.save()


QWEN2_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]


def siglip_and_qwen2(tokenizer):
    # A side that the patches do not fill, as in the published towers.
    vision = dict(model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                  num_attention_heads=4, image_size=30, patch_size=7, vision_use_head=False)
    text = dict(model_type="qwen2", hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=tokenizer.get_vocab_size() + 3, max_position_embeddings=1024,
                rms_norm_eps=1e-6, max_window_layers=2, sliding_window=1024, use_sliding_window=False,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    return vision, text


def save_with_qwen2(cases, config, tokenizer, preprocessor, processor, model, **saving):
    """As the published files: the rotary base beside the other settings, the ends of answers in a file of their own."""
    save_llava(cases, config, tokenizer, CHAT_ONE_VISION, preprocessor, processor, model, **saving)
    saved = json.loads((cases.folder / "config.json").read_text())
    saved["text_config"].pop("rope_parameters")
    saved["text_config"]["rope_theta"] = 1000000.0
    write_json(cases.folder / "config.json", saved)
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="Qwen2Tokenizer", bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        unk_token=None, add_prefix_space=False, model_max_length=32768))
    ends = [tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
    write_json(cases.folder / "generation_config.json", dict(eos_token_id=ends, pad_token_id=ends[1]))
    return ends


def siglip_preprocessor(kind, processor, **more):
    return dict(do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=[0.5] * 3,
                image_processor_type=kind, image_std=[0.5] * 3, processor_class=processor, resample=3,
                rescale_factor=1 / 255, size={"height": 30, "width": 30}, **more)


def llava_siglip(pictures, seed):
    """LLaVA 1.5's architecture with the halves of LLaVA-Interleave, and two layers of the tower, the later one first."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    cases = Cases("llava_siglip")
    tokenizer = byte_level(380, QWEN2_TOKENS)
    image_token = tokenizer.token_to_id("<image>")
    vision, text = siglip_and_qwen2(tokenizer)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=16,
                         vision_feature_layer=[-1, 1], vision_feature_select_strategy="full")
    config.architectures = ["LlavaForConditionalGeneration"]
    model = randomize(LlavaForConditionalGeneration(config), seed, 1.5)
    rounded(model)
    processor = SiglipImageProcessorPil(size={"height": 30, "width": 30})
    extra = dict(patch_size=7, vision_feature_select_strategy="full", image_token="<image>",
                 num_additional_image_tokens=0, processor_class="LlavaProcessor")
    ends = save_with_qwen2(cases, config, tokenizer, siglip_preprocessor("SiglipImageProcessor", "LlavaProcessor"),
                           extra, model, dtype=torch.bfloat16)
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it.")]:
        pixels = processor(pictures[image], return_tensors="pt")["pixel_values"]
        ids = tokenizer.encode(ask(tokenizer, CHAT_ONE_VISION, question)).ids
        features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
        answers(cases, model, tokenizer, image, question, expand(ids, image_token, 16), pixels, features, ends,
                pixel_values=pixels)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"], [0.5] * 3, [0.5] * 3)
    cases.save()


def llava_onevision(pictures, seed):
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    cases = Cases("llava_onevision")
    tokenizer = byte_level(380, QWEN2_TOKENS)
    image_token = tokenizer.token_to_id("<image>")
    vision, text = siglip_and_qwen2(tokenizer)
    grids = [[30 * down, 30 * across] for down in range(1, 4) for across in range(1, 4)]
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_token_index=image_token,
                                  video_token_index=tokenizer.token_to_id("<video>"), image_grid_pinpoints=grids,
                                  vision_aspect_ratio="anyres_max_2")
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    model = randomize(LlavaOnevisionForConditionalGeneration(config), seed, 1.5)
    rounded(model)
    processor = LlavaOnevisionImageProcessorPil(size={"height": 30, "width": 30}, image_grid_pinpoints=grids,
                                                image_mean=[0.5] * 3, image_std=[0.5] * 3)
    extra = dict(num_image_tokens=16, vision_feature_select_strategy="full", image_token="<image>",
                 video_token="<video>", vision_aspect_ratio="anyres_max_2", processor_class="LlavaOnevisionProcessor")
    preprocessor = siglip_preprocessor("LlavaOnevisionImageProcessor", "LlavaOnevisionProcessor", do_pad=True,
                                       image_grid_pinpoints=grids)
    ends = save_with_qwen2(cases, config, tokenizer, preprocessor, extra, model, dtype=torch.bfloat16)
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it."),
                            ("square", "Is it a square?")]:
        inputs = processor(pictures[image], return_tensors="pt")
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output
        features = features[0] if isinstance(features, (list, tuple)) else features
        ids = tokenizer.encode(ask(tokenizer, CHAT_ONE_VISION, question)).ids
        answers(cases, model, tokenizer, image, question, expand(ids, image_token, len(features)),
                inputs["pixel_values"][0], features, ends, **inputs)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"][0], [0.5] * 3, [0.5] * 3,
                      ["cat.png"])
    cases.save()


# Qwen-VL ------------------------------------------------------------------------------------------------------------


def byte_level(size, special):
    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    from tokenizers import Regex

    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    tokenizer.add_special_tokens(special)
    return tokenizer


QWEN_VL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
                  "<|image_pad|>", "<|video_pad|>"]


def qwen_vl_cases(cases, pictures, model, tokenizer, processor, template, ends, photographs=PHOTOGRAPHS):
    """Of a model of patches of 8 pixels, merged by fours."""
    mean, deviation = processor.image_mean, processor.image_std

    def picture_of(image):
        """The picture that the patches are of."""
        inputs = processor(image, return_tensors="pt")
        _, high, wide = inputs["image_grid_thw"][0].tolist()
        pixels = inputs["pixel_values"].reshape(high // 2, wide // 2, 2, 2, 3, 2, 8, 8)[:, :, :, :, :, 0]
        return pixels.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, high * 8, wide * 8)

    image_token = tokenizer.token_to_id("<|image_pad|>")
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it."),
                            ("square", "Is it a square?")]:
        inputs, pixels = processor(pictures[image], return_tensors="pt"), picture_of(pictures[image])
        model.model.rope_deltas = None
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output[0]
        ids = tokenizer.encode(ask(tokenizer, template, question)).ids
        ids = expand(ids, image_token, len(features))
        types = torch.tensor([[int(id == image_token) for id in ids]])
        answers(cases, model, tokenizer, image, question, ids, pixels, features, ends, mm_token_type_ids=types, **inputs)
    cases.photographs(picture_of, mean, deviation, photographs)
    cases.save()


def qwen3_vl(pictures, seed):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    of_qwen3_vl("qwen3_vl", pictures, seed, Qwen3VLConfig, Qwen3VLForConditionalGeneration, {}, True, PHOTOGRAPHS)


def qwen3_vl_moe(pictures, seed):
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20, decoder_sparse_step=1,
                   mlp_only_layers=[1])
    of_qwen3_vl("qwen3_vl_moe", pictures, seed, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, experts, False,
                ["cat.png"])


def of_qwen3_vl(family, pictures, seed, config_class, model_class, more, tied, photographs):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    cases = Cases(family)
    tokenizer = byte_level(380, QWEN_VL_TOKENS)
    token = tokenizer.token_to_id
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    text = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                head_dim=16, vocab_size=tokenizer.get_vocab_size() + 5, max_position_embeddings=512,
                rope_parameters=rope | {"rope_theta": 5000000.0}, rms_norm_eps=1e-6, **more)
    vision = dict(depth=3, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=8, spatial_merge_size=2,
                  temporal_patch_size=2, out_hidden_size=48, num_position_embeddings=36,
                  deepstack_visual_indexes=[0, 1])
    config = config_class(text_config=text, vision_config=vision, image_token_id=token("<|image_pad|>"),
                           video_token_id=token("<|video_pad|>"), vision_start_token_id=token("<|vision_start|>"),
                           vision_end_token_id=token("<|vision_end|>"), tie_word_embeddings=tied)
    if tied:
        config.text_config.tie_word_embeddings = True
    config.architectures = [model_class.__name__]
    model = randomize(model_class(config), seed, 1.5)
    if more:
        rounded(model)
    model.tie_weights()
    size = {"shortest_edge": 1024, "longest_edge": 10240}
    processor = Qwen2VLImageProcessorPil(size=size, patch_size=8, merge_size=2, temporal_patch_size=2,
                                         image_mean=[0.5] * 3, image_std=[0.5] * 3)
    cases.folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(cases.folder)
    # As the published file has it.
    saved = json.loads((cases.folder / "config.json").read_text())
    saved["text_config"].pop("rope_parameters", None)
    saved["text_config"] |= {"rope_scaling": rope, "rope_theta": 5000000}
    if "num_local_experts" in saved["text_config"]:
        saved["text_config"]["num_experts"] = saved["text_config"].pop("num_local_experts")
    write_json(cases.folder / "config.json", saved)
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="Qwen2Tokenizer", bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        unk_token=None, add_bos_token=False, model_max_length=262144))
    write_json(cases.folder / "chat_template.json", {"chat_template": CHAT_VISION_PAD})
    write_json(cases.folder / "generation_config.json", dict(
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")], pad_token_id=token("<|endoftext|>")))
    write_json(cases.folder / "preprocessor_config.json", dict(
        size=size, patch_size=8, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        processor_class="Qwen3VLProcessor", image_processor_type="Qwen2VLImageProcessorFast"))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not tied or name != "lm_head.weight"}
    # The published matrices of experts lie input by input.
    tensors = {name: tensor.transpose(1, 2) if "mlp.experts." in name else tensor for name, tensor in tensors.items()}
    save_weights(cases.folder, tensors, dtype=torch.bfloat16 if more else torch.float32)

    qwen_vl_cases(cases, pictures, model, tokenizer, processor, CHAT_VISION_PAD,
                  [token("<|im_end|>"), token("<|endoftext|>")], photographs)


CHAT_SYSTEM_AND_PAD = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen2_5_vl(pictures, seed):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = dict(depth=3, hidden_act="silu", hidden_size=32, intermediate_size=44, num_heads=2, in_chans=3,
                  out_hidden_size=48, patch_size=8, spatial_merge_size=2, spatial_patch_size=8, window_size=32,
                  fullatt_block_indexes=[1], tokens_per_second=2, temporal_patch_size=2)
    of_qwen2_vl("qwen2_5_vl", pictures, seed, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, vision,
                "Qwen2_5_VLProcessor")


def qwen2_vl(pictures, seed):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = dict(depth=3, embed_dim=32, mlp_ratio=2, num_heads=2, in_chans=3, hidden_size=48, patch_size=8,
                  spatial_merge_size=2, spatial_patch_size=8, temporal_patch_size=2)
    # Other weights than those of the family before.
    of_qwen2_vl("qwen2_vl", pictures, seed + 50, Qwen2VLConfig, Qwen2VLForConditionalGeneration, vision,
                "Qwen2VLProcessor")


def of_qwen2_vl(family, pictures, seed, config_class, model_class, vision, processor_name):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    cases = Cases(family)
    tokenizer = byte_level(380, QWEN_VL_TOKENS)
    token = tokenizer.token_to_id
    # The settings of the text beside the others, as in the published file.
    flat = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                vocab_size=tokenizer.get_vocab_size() + 5, max_position_embeddings=512, rms_norm_eps=1e-6,
                rope_theta=1000000.0, rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]}, hidden_act="silu",
                attention_dropout=0.0, initializer_range=0.02, use_cache=True, use_sliding_window=False,
                sliding_window=512, max_window_layers=2, tie_word_embeddings=True,
                bos_token_id=token("<|endoftext|>"), eos_token_id=token("<|im_end|>"))
    ids = dict(image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
               vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"))
    config = config_class(vision_config=dict(vision), **json.loads(json.dumps(flat)), **ids)
    model = randomize(model_class(config), seed, 1.5)
    rounded(model)
    model.tie_weights()
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 1024, "longest_edge": 10240}, patch_size=8, merge_size=2,
                                         temporal_patch_size=2)
    cases.folder.mkdir(parents=True, exist_ok=True)
    write_json(cases.folder / "config.json", dict(
        architectures=[model_class.__name__], model_type=family, torch_dtype="bfloat16",
        transformers_version="4.41.2", vision_config=vision, vision_token_id=token("<|vision_start|>"), **flat, **ids))
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="Qwen2Tokenizer", bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        unk_token=None, add_bos_token=False, add_prefix_space=False, model_max_length=131072))
    write_json(cases.folder / "chat_template.json", {"chat_template": CHAT_SYSTEM_AND_PAD})
    ends = [token("<|im_end|>"), token("<|endoftext|>")]
    write_json(cases.folder / "generation_config.json", dict(eos_token_id=ends, pad_token_id=ends[1]))
    write_json(cases.folder / "preprocessor_config.json", dict(
        min_pixels=1024, max_pixels=10240, patch_size=8, temporal_patch_size=2, merge_size=2,
        image_mean=processor.image_mean, image_std=processor.image_std,
        image_processor_type="Qwen2VLImageProcessor", processor_class=processor_name))
    published = {"model.visual.": "visual.", "model.language_model.": "model."}
    def name_of(name):
        return next((new + name[len(old):] for old, new in published.items() if name.startswith(old)), name)
    save_weights(cases.folder, {name_of(name): tensor for name, tensor in model.state_dict().items()
                                if name != "lm_head.weight"}, dtype=torch.bfloat16)
    qwen_vl_cases(cases, pictures, model, tokenizer, processor, CHAT_SYSTEM_AND_PAD, ends, ["cat.png"])


# Idefics3 and SmolVLM ------------------------------------------------------------------------------------------------

CHAT_COLON = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
FAKE = "<fake_token_around_image>"


def idefics3(pictures, seed):
    """As the first SmolVLM is published."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    text = dict(_flash_attn_2_enabled=True, architectures=["VLlama3ForCausalLM"], is_llama_config=True, head_dim=16,
                neftune_noise_alpha=0.0, perceiver_config={"model_type": "vllama3", "resampler_depth": 6},
                pixel_shuffle_factor=2, qk_layer_norms=False, rope_interleaved=False, use_resampler=False)
    vision = dict(max_image_size={"longest_edge": 28}, size={"longest_edge": 84}, use_base_siglip=False)
    split_images("idefics3", pictures, seed, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil,
                 "Idefics3Processor", 84, (text, vision | {"model_type": "idefics3"}))


def smolvlm(pictures, seed):
    """As SmolVLM 2 is published."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    # Other weights than those of the family before.
    split_images("smolvlm", pictures, seed + 50, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil,
                 "SmolVLMProcessor", 56, ({}, {"model_type": "smolvlm_vision"}), video_sampling={"fps": 1, "max_frames": 64})


def split_images(family, pictures, seed, config_class, model_class, processor_class, name, longest, more, **preprocessing):
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    cases = Cases(family)
    more_text, more_vision = more
    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = byte_level(380, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", FAKE, "<image>", "<end_of_utterance>",
                                 "<global-img>"] + places)
    token = tokenizer.token_to_id
    text = dict(model_type="llama", hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
                num_key_value_heads=1, vocab_size=tokenizer.get_vocab_size() + 3, max_position_embeddings=512,
                rms_norm_eps=1e-5, rope_theta=100000, pad_token_id=token("<|im_end|>"), tie_word_embeddings=False)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28,
                  patch_size=7)
    own = dict(scale_factor=2, image_token_id=token("<image>"), tie_word_embeddings=False, use_cache=True)
    config = config_class(text_config=dict(text), vision_config=dict(vision), **own)
    model = randomize(model_class(config), seed, 1.5)
    rounded(model)
    processor = processor_class(size={"longest_edge": longest}, max_image_size={"longest_edge": 28},
                                image_mean=[0.5] * 3, image_std=[0.5] * 3)
    cases.folder.mkdir(parents=True, exist_ok=True)
    write_json(cases.folder / "config.json", dict(
        architectures=[model_class.__name__], model_type=family, text_config=text | more_text,
        vision_config=vision | more_vision, torch_dtype="bfloat16", transformers_version="4.46.0",
        vocab_size=text["vocab_size"], **own))
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="GPT2Tokenizer", bos_token="<|im_start|>", eos_token="<end_of_utterance>",
        pad_token="<|im_end|>", unk_token="<|endoftext|>", add_prefix_space=False, model_max_length=16384))
    write_json(cases.folder / "chat_template.json", {"chat_template": CHAT_COLON})
    end = token("<end_of_utterance>")
    write_json(cases.folder / "generation_config.json", dict(
        bos_token_id=token("<|im_start|>"), eos_token_id=end, pad_token_id=token("<|im_end|>")))
    write_json(cases.folder / "preprocessor_config.json", dict(
        do_convert_rgb=True, do_image_splitting=True, do_normalize=True, do_pad=True, do_rescale=True, do_resize=True,
        image_mean=[0.5] * 3, image_processor_type=processor_class.__name__.removesuffix("Pil"), image_std=[0.5] * 3,
        max_image_size={"longest_edge": 28}, processor_class=name, resample=1, rescale_factor=1 / 255,
        size={"longest_edge": longest}, **preprocessing))
    write_json(cases.folder / "processor_config.json", dict(image_seq_len=4, processor_class=name))
    save_weights(cases.folder, dict(model.state_dict()), dtype=torch.bfloat16)
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it."),
                            ("square", "Is it a square?")]:
        inputs = processor(pictures[image], return_tensors="pt", return_row_col_info=True)
        rows, columns = inputs.pop("rows")[0][0], inputs.pop("cols")[0][0]
        words = get_image_prompt_string(rows, columns, 4, FAKE, "<image>", "<global-img>")
        ids = tokenizer.encode(ask(tokenizer, CHAT_COLON, question).replace("<image>", words)).ids
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output
        features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features.flatten(0, 1)
        answers(cases, model, tokenizer, image, question, ids, inputs["pixel_values"][0], features.flatten(0, -2), [end],
                **inputs)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"][0], [0.5] * 3, [0.5] * 3,
                      ["cat.png"])
    cases.save()


# Pixtral and Mistral Small 3.1 ---------------------------------------------------------------------------------------

PIXTRAL_TOKENS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
CHAT_IMG = (
    "{{- bos_token }}{%- for message in messages if message['role'] != 'system' %}"
    "{%- if message['role'] == 'user' %}{{- '[INST]' }}"
    "{%- if loop.last and messages[0]['role'] == 'system' %}{{- messages[0]['content'][0]['text'] + '\n\n' }}{%- endif %}"
    "{%- for chunk in message['content'] %}{%- if chunk['type'] == 'text' %}{{- chunk['text'] }}"
    "{%- elif chunk['type'] == 'image' %}{{- '[IMG]' }}{%- else %}{{- raise_exception('a chunk of another type') }}"
    "{%- endif %}{%- endfor %}{{- '[/INST]' }}"
    "{%- else %}{%- for chunk in message['content'] %}{{- chunk['text'] }}{%- endfor %}{{- eos_token }}{%- endif %}"
    "{%- endfor %}"
)


def pixtral(pictures, seed):
    """As mistral-community/pixtral-12b is published."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = dict(hidden_act="silu", image_size=64, is_composition=True, patch_size=8)
    own = dict(ignore_index=-100, image_seq_length=1, vision_feature_layer=-1, vision_feature_select_strategy="full")
    images_of_their_own_sizes("pixtral", pictures, seed, LlavaConfig, LlavaForConditionalGeneration, "llava", vision, own,
                              64, 1)


def mistral3(pictures, seed):
    """As Mistral Small 3.1 is published."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = dict(attention_dropout=0.0, hidden_act="gelu", image_size=96, initializer_range=0.02, num_channels=3,
                  patch_size=6)
    own = dict(vision_feature_layer=-1, multimodal_projector_bias=False, spatial_merge_size=2)
    images_of_their_own_sizes("mistral3", pictures, seed + 50, Mistral3Config, Mistral3ForConditionalGeneration, "mistral3",
                              vision, own, 96, 2)


def images_of_their_own_sizes(family, pictures, seed, config_class, model_class, model_type, vision, own, longest, merge):
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    cases = Cases(family)
    kept = cases.folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(kept)) if kept.exists() else byte_level(380, PIXTRAL_TOKENS)
    token = tokenizer.token_to_id
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", token("<s>"))])
    vision |= dict(head_dim=16, hidden_size=32, intermediate_size=48, model_type="pixtral", num_attention_heads=2,
                   num_hidden_layers=3, rope_theta=10000.0)
    text = dict(head_dim=16, hidden_size=48, intermediate_size=64, is_composition=True, max_position_embeddings=1024,
                model_type="mistral", num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2,
                rms_norm_eps=1e-05, rope_theta=1000000.0, sliding_window=None, vocab_size=tokenizer.get_vocab_size() + 3)
    own |= dict(image_token_index=token("[IMG]"), projector_hidden_act="gelu")
    config = config_class(vision_config=dict(vision), text_config=dict(text), tie_word_embeddings=False, **own)
    model = randomize(model_class(config), seed, 1.5)
    rounded(model)
    patch = vision["patch_size"]
    processor = PixtralImageProcessorPil(size={"longest_edge": longest})
    cases.folder.mkdir(parents=True, exist_ok=True)
    write_json(cases.folder / "config.json", dict(
        architectures=[model_class.__name__], model_type=model_type, text_config=text, vision_config=vision,
        torch_dtype="bfloat16", transformers_version="4.45.0.dev0", **own))
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        model_max_length=1000000000000000019884624838656))
    write_json(cases.folder / "chat_template.json", {"chat_template": CHAT_IMG})
    write_json(cases.folder / "generation_config.json", dict(
        bos_token_id=token("<s>"), eos_token_id=token("</s>"), pad_token_id=token("<pad>")))
    write_json(cases.folder / "preprocessor_config.json", dict(
        do_convert_rgb=True, do_normalize=True, do_rescale=True, do_resize=True, image_mean=processor.image_mean,
        image_processor_type="PixtralImageProcessor", image_std=processor.image_std,
        patch_size={"height": patch, "width": patch}, processor_class="PixtralProcessor", resample=3,
        rescale_factor=1 / 255, size={"longest_edge": longest}))
    write_json(cases.folder / "processor_config.json", dict(
        image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]", image_token="[IMG]", patch_size=patch,
        processor_class="PixtralProcessor", **({"spatial_merge_size": merge} if merge > 1 else {})))
    published = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""}
    def name_of(name):
        return next((new + name[len(old):] for old, new in published.items() if name.startswith(old)), name)
    save_weights(cases.folder, {name_of(name): tensor for name, tensor in model.state_dict().items()}, dtype=torch.bfloat16)
    template = CHAT_IMG.replace("{{- bos_token }}", "<s>")

    def process(image):
        return processor(image, return_tensors="pt", patch_size=patch * merge)

    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it."),
                            ("square", "Is it a square?")]:
        inputs = process(pictures[image])
        high, wide = (side // (patch * merge) for side in inputs["image_sizes"][0].tolist())
        words = "[IMG_BREAK]".join(["[IMG]" * wide] * high) + "[IMG_END]"
        asked = ask(tokenizer, template, question).replace("[IMG]", words)
        ids = tokenizer.encode(asked, add_special_tokens=False).ids
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output[0]
        answers(cases, model, tokenizer, image, question, ids, inputs["pixel_values"][0], features, [token("</s>")],
                **inputs)
    cases.photographs(lambda image: process(image)["pixel_values"][0], processor.image_mean, processor.image_std,
                      ["cat.png"])
    cases.save()


# Gemma 3 --------------------------------------------------------------------------------------------------------------

GEMMA3_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>",
                 "<end_of_image>", "<image_soft_token>"]
CHAT_TURNS = (
    "{{ bos_token }}{%- set first = messages[0]['content'][0]['text'] + '\n\n' if messages[0]['role'] == 'system' else '' -%}"
    "{%- for message in messages if message['role'] != 'system' -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{%- if loop.first -%}{{ first }}{%- endif -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}"
    "{%- endif -%}{%- endfor -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def gemma_tokenizer(size, special):
    """Words that end with a mark, single bytes for what is not known."""
    trainer = trainers.BpeTrainer(vocab_size=size - 256 - len(special), show_progress=False)
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Replace(" ", "▁")
    plain.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    plain.train_from_iterator(sentences(), trainer)
    learned = json.loads(plain.to_str())["model"]
    words = special + [f"<0x{byte:02X}>" for byte in range(256)] + ["\n", "\n\n", "\n\n\n"]
    words += sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [("\n", "\n"), ("\n\n", "\n")] + [tuple(merge) for merge in learned["merges"]]
    model = models.BPE({word: index for index, word in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True,
                       byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)])
    return tokenizer


def gemma3(pictures, seed):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    cases = Cases("gemma3")
    kept = cases.folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(kept)) if kept.exists() else gemma_tokenizer(420, GEMMA3_TOKENS)
    token = tokenizer.token_to_id
    # A window that is shorter than an image, in two layers of three.
    text = dict(hidden_size=48, intermediate_size=64, model_type="gemma3_text", num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=12, sliding_window_pattern=2,
                max_position_embeddings=1024, rope_theta=1000000.0, rope_local_base_freq=10000.0,
                rope_scaling={"factor": 8.0, "rope_type": "linear"}, vocab_size=tokenizer.get_vocab_size() + 6)
    vision = dict(hidden_size=32, image_size=32, intermediate_size=48, model_type="siglip_vision_model",
                  num_attention_heads=4, num_hidden_layers=2, patch_size=4, vision_use_head=False)
    ends = [token("<eos>"), token("<end_of_turn>")]
    own = dict(boi_token_index=token("<start_of_image>"), eoi_token_index=token("<end_of_image>"),
               image_token_index=token("<image_soft_token>"), mm_tokens_per_image=16, eos_token_id=ends,
               initializer_range=0.02)
    config = Gemma3Config(text_config=copy.deepcopy(text), vision_config=dict(vision), **own)
    model = randomize(Gemma3ForConditionalGeneration(config), seed, 1.5)
    with torch.no_grad():
        # Words are made longer by the root of the width: the file's are shorter for it, or each is said again.
        model.model.language_model.embed_tokens.weight.mul_(0.15)
    rounded(model)
    model.tie_weights()
    processor = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    cases.folder.mkdir(parents=True, exist_ok=True)
    write_json(cases.folder / "config.json", dict(
        architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text, vision_config=vision,
        torch_dtype="bfloat16", transformers_version="4.50.0.dev0", **own))
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="GemmaTokenizer", add_bos_token=True, add_eos_token=False, bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>", pad_token="<pad>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
        image_token="<image_soft_token>", model_max_length=1000000000000000019884624838656, spaces_between_special_tokens=False))
    write_json(cases.folder / "chat_template.json", {"chat_template": CHAT_TURNS})
    write_json(cases.folder / "generation_config.json", dict(
        bos_token_id=token("<bos>"), eos_token_id=ends, pad_token_id=token("<pad>")))
    write_json(cases.folder / "preprocessor_config.json", dict(
        do_convert_rgb=None, do_normalize=True, do_pan_and_scan=None, do_rescale=True, do_resize=True, image_mean=[0.5] * 3,
        image_processor_type="Gemma3ImageProcessor", image_seq_length=16, image_std=[0.5] * 3,
        pan_and_scan_max_num_crops=None, pan_and_scan_min_crop_size=None, pan_and_scan_min_ratio_to_activate=None,
        processor_class="Gemma3Processor", resample=2, rescale_factor=1 / 255, size={"height": 32, "width": 32}))
    write_json(cases.folder / "processor_config.json", dict(image_seq_length=16, processor_class="Gemma3Processor"))
    published = {"model.language_model.": "language_model.model.", "model.vision_tower.vision_model.": "vision_tower.vision_model.",
                 "model.vision_tower.": "vision_tower.vision_model.", "model.": ""}
    def name_of(name):
        return next((new + name[len(old):] for old, new in published.items() if name.startswith(old)), name)
    save_weights(cases.folder, {name_of(name): tensor for name, tensor in model.state_dict().items()
                                if name != "lm_head.weight" and not name.endswith("position_ids")}, dtype=torch.bfloat16)
    template = CHAT_TURNS.replace("{{ bos_token }}", "<bos>")
    words = "\n\n<start_of_image>" + "<image_soft_token>" * 16 + "<end_of_image>\n\n"
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it."),
                            ("square", "Is it a square?")]:
        pixels = processor(pictures[image], return_tensors="pt")["pixel_values"]
        asked = ask(tokenizer, template, question).replace("<start_of_image>", words)
        ids = tokenizer.encode(asked, add_special_tokens=False).ids
        features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
        types = torch.tensor([[int(id == token("<image_soft_token>")) for id in ids]])
        answers(cases, model, tokenizer, image, question, ids, pixels, features, ends, pixel_values=pixels,
                token_type_ids=types)
    cases.photographs(lambda image: processor(image, return_tensors="pt")["pixel_values"], [0.5] * 3, [0.5] * 3,
                      ["cat.png"])
    cases.save()


# Moondream 2 --------------------------------------------------------------------------------------------------------


def moondream(pictures, seed):
    from moondream import Moondream

    cases = Cases("moondream")
    tokenizer = byte_level(380, ["<|endoftext|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    prompts = {name: tokenizer.encode(text).ids for name, text in
               [("prefix", "\n\nQuestion: "), ("suffix", "\n\nAnswer:"), ("normal", "\n\nCaption:")]}
    config = dict(
        text=dict(dim=48, ff_dim=80, n_layers=2, vocab_size=tokenizer.get_vocab_size() + 3, max_context=512, n_heads=3,
                  prefix_attn=26),
        vision=dict(enc_dim=32, enc_patch_size=14, enc_n_layers=2, enc_ff_dim=48, enc_n_heads=2, proj_inner_dim=64,
                    proj_out_dim=48, crop_size=70, in_channels=3, max_crops=12, overlap_margin=1),
        tokenizer=dict(bos_id=end, eos_id=end, templates={
            "caption": {"short": prompts["normal"], "normal": prompts["normal"]},
            "query": {"prefix": prompts["prefix"], "suffix": prompts["suffix"]}, "detect": None, "point": None}))
    model = randomize(Moondream(config), seed, 1.2)
    cases.folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="CodeGenTokenizer", bos_token="<|endoftext|>", eos_token="<|endoftext|>",
        unk_token="<|endoftext|>", model_max_length=512))
    write_json(cases.folder / "config.json", dict(
        architectures=["HfMoondream"], auto_map={"AutoConfig": "hf_moondream.HfConfig",
                                                 "AutoModelForCausalLM": "hf_moondream.HfMoondream"},
        config=config, model_type="moondream1", torch_dtype="float16"))
    model = model.half().float()
    save_weights(cases.folder, {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
                 dtype=torch.float16)
    for image, question in [("wide", "What is this?"), ("tall", "Who sits by the river?"), ("large", "Describe it."),
                            ("large", "")]:
        crops, tiling = model.crops(pictures[image])
        features = model.vision(crops, tiling)
        asked = prompts["prefix"] + tokenizer.encode(question).ids + prompts["suffix"] if question else prompts["normal"]
        tokens, logits = model.generate(features, [end] + asked, TOKENS, end)
        text = tokenizer.decode(tokens)
        # A placeholder for each row of the image.
        prompt = [end] * (1 + len(features)) + asked
        cases.add(image, question, prompt, crops, features, tokens, logits, text, answer=text, tiling=tiling)
    cases.photographs(lambda image: model.crops(image)[0], [0.5] * 3, [0.5] * 3, ["cat.png", "face.png"])
    cases.save()


FAMILIES = {family.__name__: family for family in (
    blip, blip2, blip2_t5, llava, llava_next, llava_siglip, llava_onevision, pixtral, mistral3, qwen2_vl, qwen2_5_vl,
    qwen3_vl, qwen3_vl_moe, idefics3, smolvlm, gemma3, moondream)}


def main():
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


if __name__ == "__main__":
    main()
