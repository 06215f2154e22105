"""The denoiser of the reference code, operation by operation, to compare conversions with.

Written after `Conditional_Model` in ddpm/models/diffusion.py of clear-nus/selective-amnesia (commit b736571), which
DDPM/models/diffusion.py of OPTML-Group/Unlearn-Saliency (commit a6e89fd) reformats; weights have its names. The one
difference: the class embedding is four times the width here, as theirs is at its only usable width, 128.
"""

import math

import torch
from torch import nn
from torch.nn import functional


def sinusoids(t, width):
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def swish(x):
    return x * torch.sigmoid(x)


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


def mlp(width):
    part = nn.Module()
    part.dense = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])
    return part


def through(part, x):
    return part.dense[1](swish(part.dense[0](x)))


class ResnetBlock(nn.Module):
    def __init__(self, inputs, outputs, embedding):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.temb_cemb_proj = nn.Linear(embedding, outputs)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, temb, cemb):
        h = self.conv1(swish(self.norm1(x)))
        h = h + self.temb_cemb_proj(swish(torch.cat([temb, cemb], dim=-1)))[:, :, None, None]
        h = self.conv2(self.dropout(swish(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        b, c, height, width = x.shape
        h = self.norm(x)
        q, k, v = (layer(h).reshape(b, c, height * width) for layer in (self.q, self.k, self.v))
        attention = torch.softmax(torch.bmm(q.permute(0, 2, 1), k) * c**-0.5, dim=2)
        h = torch.bmm(v, attention.permute(0, 2, 1)).reshape(b, c, height, width)
        return x + self.proj_out(h)


class Resample(nn.Module):
    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x):
        if self.down:
            return self.conv(functional.pad(x, (0, 1, 0, 1)))
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def level(blocks, attention):
    part = nn.Module()
    part.block = nn.ModuleList(blocks)
    part.attn = nn.ModuleList([AttnBlock(block.conv2.out_channels) for block in blocks] if attention else [])
    return part


class ConditionalModel(nn.Module):
    """The network; `attentive` are the levels with attention, from 0 at full size."""

    def __init__(self, *, ch=32, mult=(1, 2, 2), blocks=1, attentive=(1,), channels=3, classes=10):
        super().__init__()
        self.ch, self.blocks, self.levels = ch, blocks, len(mult)
        self.temb, self.cemb = mlp(ch), mlp(ch)
        self.classes_emb, self.null_classes_emb = nn.Embedding(classes, ch), nn.Parameter(torch.randn(ch))
        self.conv_in = nn.Conv2d(channels, ch, 3, padding=1)
        widths = [ch * factor for factor in mult]
        self.down, self.mid, self.up = nn.ModuleList(), nn.Module(), nn.ModuleList()
        last = ch
        for i, width in enumerate(widths):
            inputs = [last, *[width] * (blocks - 1)]
            part = level([ResnetBlock(n, width, 8 * ch) for n in inputs], i in attentive)
            if i + 1 < len(widths):
                part.downsample = Resample(width, down=True)
            self.down.append(part)
            last = width
        self.mid.block_1, self.mid.block_2 = (ResnetBlock(last, last, 8 * ch) for _ in range(2))
        self.mid.attn_1 = AttnBlock(last)
        for i, width in reversed(list(enumerate(widths))):
            skips = [*[width] * blocks, widths[i - 1] if i else ch]
            inputs = [last, *[width] * blocks]
            part = level(
                [ResnetBlock(n + skip, width, 8 * ch) for n, skip in zip(inputs, skips, strict=True)], i in attentive
            )
            if i:
                part.upsample = Resample(width, down=False)
            self.up.insert(0, part)
            last = width
        self.norm_out, self.conv_out = norm(last), nn.Conv2d(last, channels, 3, padding=1)

    def forward(self, x, t, c):
        """Predict noise; the label one past the last is the null class."""
        temb = through(self.temb, sinusoids(t, self.ch))
        is_null = c == self.classes_emb.num_embeddings
        vectors = self.classes_emb(torch.where(is_null, 0, c))
        cemb = through(self.cemb, torch.where(is_null[:, None], self.null_classes_emb, vectors))
        hs = [self.conv_in(x)]
        for i, part in enumerate(self.down):
            for j, block in enumerate(part.block):
                h = block(hs[-1], temb, cemb)
                hs.append(part.attn[j](h) if len(part.attn) else h)
            if i + 1 < self.levels:
                hs.append(part.downsample(hs[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(hs[-1], temb, cemb)), temb, cemb)
        for i in reversed(range(self.levels)):
            part = self.up[i]
            for j, block in enumerate(part.block):
                h = block(torch.cat([h, hs.pop()], dim=1), temb, cemb)
                h = part.attn[j](h) if len(part.attn) else h
            h = part.upsample(h) if i else h
        return self.conv_out(swish(self.norm_out(h)))
