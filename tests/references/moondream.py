"""Moondream 2 in PyTorch, as the model's own repository has computed it since January 2025: a vision transformer over
one crop of the whole picture and up to twelve that overlap, whose features are stitched together and averaged down
to the size of the first's, and a text model of parallel layers in which the image's rows see each other. Written from
the description of the published code for comparison alone; names of tensors are those of the published file.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """One layer, of vision (a norm before each half) or of text (one norm before both at once)."""

    def __init__(self, width, middle, heads, norms):
        super().__init__()
        for name in norms:
            setattr(self, name, nn.LayerNorm(width))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, middle), "fc2": nn.Linear(middle, width)})
        self.heads = heads

    def middle(self, x):
        return self.mlp["fc2"](F.gelu(self.mlp["fc1"](x), approximate="tanh"))

    def split(self, x):
        rows, size = x.shape[0], x.shape[1] // self.heads
        return [part.reshape(rows, self.heads, size).transpose(0, 1) for part in self.attn["qkv"](x).chunk(3, -1)]

    def join(self, heads):
        return self.attn["proj"](heads.transpose(0, 1).flatten(1))


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, width = c, c["enc_dim"]
        self.grid = c["crop_size"] // c["enc_patch_size"]
        self.patch_emb = nn.Linear(c["enc_patch_size"] ** 2 * 3, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, self.grid**2, width))
        self.blocks = nn.ModuleList(
            Block(width, c["enc_ff_dim"], c["enc_n_heads"], ["ln1", "ln2"]) for _ in range(c["enc_n_layers"]))
        self.post_ln = nn.LayerNorm(width)
        self.proj_mlp = nn.ModuleDict(
            {"fc1": nn.Linear(2 * width, c["proj_inner_dim"]), "fc2": nn.Linear(c["proj_inner_dim"], c["proj_out_dim"])})

    def encode(self, crop):
        side, grid = self.c["enc_patch_size"], self.grid
        x = crop.reshape(3, grid, side, grid, side).permute(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        x = self.patch_emb(x) + self.pos_emb[0]
        for block in self.blocks:
            q, k, v = block.split(block.ln1(x))
            x = x + block.join(F.scaled_dot_product_attention(q, k, v))
            x = x + block.middle(block.ln2(x))
        return self.post_ln(x)

    def forward(self, crops, tiling):
        features = [self.encode(crop) for crop in crops]
        grid, margin = self.grid, self.c["overlap_margin"]
        down, across = tiling
        step = grid - 2 * margin
        whole = torch.zeros(down * step + 2 * margin, across * step + 2 * margin, features[0].shape[-1])
        for index, crop in enumerate(features[1:]):
            row, column = divmod(index, across)
            top, left = (margin if row else 0), (margin if column else 0)
            bottom = grid - (margin if row + 1 < down else 0)
            right = grid - (margin if column + 1 < across else 0)
            part = crop.reshape(grid, grid, -1)[top:bottom, left:right]
            whole[row * step + top:row * step + bottom, column * step + left:column * step + right] = part
        pooled = F.adaptive_avg_pool2d(whole.permute(2, 0, 1), (grid, grid)).permute(1, 2, 0).reshape(grid * grid, -1)
        both = torch.cat([features[0], pooled], -1)
        return self.proj_mlp["fc2"](F.gelu(self.proj_mlp["fc1"](both), approximate="tanh"))


class Text(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, width = c, c["dim"]
        self.wte = nn.Parameter(torch.zeros(c["vocab_size"], width))
        self.blocks = nn.ModuleList(Block(width, c["ff_dim"], c["n_heads"], ["ln"]) for _ in range(c["n_layers"]))
        self.post_ln = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, c["vocab_size"])

    def turn(self, x):
        """The first half of each head is turned, pairs of its first and second quarter."""
        size = x.shape[-1]
        pairs = size // 4
        steps = 1.0 / 10000.0 ** (torch.arange(0, 2 * pairs, 2).float() / (2 * pairs))
        angles = torch.arange(x.shape[1]).float()[:, None] * steps
        cos, sin = angles.cos(), angles.sin()
        a, b, rest = x[..., :pairs], x[..., pairs:2 * pairs], x[..., 2 * pairs:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)

    def forward(self, x, prefix):
        count = x.shape[0]
        mask = torch.ones(count, count, dtype=torch.bool).tril()
        mask[:prefix, :prefix] = True
        for block in self.blocks:
            y = block.ln(x)
            q, k, v = block.split(y)
            attended = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, attn_mask=mask)
            x = x + block.join(attended) + block.middle(y)
        return self.lm_head(self.post_ln(x[-1]))


class Moondream(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision, self.text = Vision(config["vision"]), Text(config["text"])

    def crops(self, image):
        c = self.config["vision"]
        side, patch = c["crop_size"], c["enc_patch_size"]
        margin = c["overlap_margin"] * patch
        window = side - 2 * margin
        width, height = image.size
        tiling = select_tiling(height - 2 * margin, width - 2 * margin, window, c["max_crops"])
        size = (tiling[1] * window + 2 * margin, tiling[0] * window + 2 * margin)
        large = np.array(image.resize(size, Image.Resampling.LANCZOS))
        crops = [np.array(image.resize((side, side), Image.Resampling.LANCZOS))]
        for row in range(tiling[0]):
            for column in range(tiling[1]):
                crops.append(large[row * window:row * window + side, column * window:column * window + side])
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
        return (pixels / 255.0 - 0.5) / 0.5, tiling

    def embed(self, tokens):
        return self.text.wte[torch.tensor(tokens)]

    def generate(self, image_rows, prompt, count, end):
        """Greedy, all rows anew for each token: slow and plain."""
        prefix = 1 + image_rows.shape[0]
        rows = torch.cat([self.embed(prompt[:1]), image_rows, self.embed(prompt[1:])])
        tokens, logits = [], []
        while len(tokens) < count and (not tokens or tokens[-1] != end):
            logits.append(self.text(rows, prefix))
            tokens.append(int(logits[-1].argmax()))
            rows = torch.cat([rows, self.embed(tokens[-1:])])
        return tokens, logits


def select_tiling(height, width, side, most):
    """Rows and columns of crops that cover a picture, no more than so many."""
    if height <= side or width <= side:
        return 1, 1
    low, high = math.ceil(height / side), math.ceil(width / side)
    if low * high > most:
        ratio = math.sqrt(most / (low * high))
        return max(1, math.floor(low * ratio)), max(1, math.floor(high * ratio))
    down = max(math.floor(math.sqrt(most * height / width)), low)
    across = max(math.floor(math.sqrt(most * width / height)), high)
    if down * across > most:
        if across > down:
            across = math.floor(most / down)
        else:
            down = math.floor(most / across)
    return max(1, down), max(1, across)
