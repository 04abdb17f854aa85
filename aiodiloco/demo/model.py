"""A byte-level transformer of half a million parameters, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from aiodiloco.demo.corpus import VOCAB_SIZE

__all__ = ["GPT"]


class GPT(nn.Module):
    """Predicts the next byte at every position of up to `context` bytes.

    Pre-norm residual blocks, rotary positions, normalised queries and keys, GELU; no biases and no norm
    weights: 0.46M parameters, all of them in embedding and matrices. Two wide layers rather than four narrow ones,
    because a CPU multiplies few large matrices faster than many small ones.
    """

    rotation: Tensor

    def __init__(self, *, context: int = 64, width: int = 128, num_layers: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(VOCAB_SIZE, width)
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(width, VOCAB_SIZE, bias=False)
        self.register_buffer("rotation", _rotation(context, width // num_heads), persistent=False)
        self.apply(_init)

    def forward(self, tokens: Tensor) -> Tensor:  # (batch, length) int64 -> (batch, length, 256)
        """Return the logits of the byte after each position."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.rotation[:, : tokens.shape[1]])
        logits: Tensor = self.head(_norm(x))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:  # both (batch, length) int64
        """Return the mean cross-entropy per byte, in nats, as a 0-d tensor."""
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())


class _Block(nn.Module):
    """Attention, then a feed-forward layer, each added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:  # (batch, length, width), (2, length, head_width / 2)
        x = x + self.attend(_norm(x), rotation)
        y: Tensor = x + self.down(F.gelu(self.up(_norm(x))))
        return y

    def attend(self, x: Tensor, rotation: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = _rotate(_norm(q), rotation), _rotate(_norm(k), rotation)  # (batch, num_heads, length, head_width)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return z


def _init(module: nn.Module) -> None:
    """Let every matrix keep the variance of what it multiplies; torch's default shrinks it, and learns more slowly."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _rotation(context: int, head_width: int) -> Tensor:
    """Return cosines and sines of rotary positions (https://arxiv.org/abs/2104.09864), (2, context, head_width / 2)."""
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(context).float(), frequencies)
    return torch.stack((angles.cos(), angles.sin()))


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of features, one from either half, by the angle of its position."""
    (cos, sin), (left, right) = rotation, x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
