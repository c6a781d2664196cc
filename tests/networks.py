"""Small networks of many shapes for tests of tracing: a list of steps, each changing the width as it says."""

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    def __init__(self, c, norm):
        super().__init__()
        self.norm = nn.GroupNorm(norm, c) if norm else nn.Identity()
        self.one, self.two = nn.Conv2d(c, c + 2, 3, padding=1), nn.Conv2d(c + 2, c, 3, padding=1)

    def forward(self, x):
        return x + self.two(functional.relu(self.one(self.norm(x))))


class Gated(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.both, self.out = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        value, gate = self.both(x).chunk(2, dim=1)
        return self.out(value * torch.sigmoid(gate))


class Excited(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(functional.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Dense(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.more = nn.Conv2d(c, 4, 3, padding=1)

    def forward(self, x):
        return torch.cat([functional.leaky_relu(self.more(x)), x], dim=1)


class Feed(nn.Module):
    """Channels last: a norm over channels, two linear layers, a learned scale."""

    def __init__(self, c):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(c), nn.Linear(c, 6), nn.Linear(6, c)
        self.gamma = nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x):
        y = x.permute(0, 2, 3, 1)
        return x + (self.gamma * self.two(functional.gelu(self.one(self.norm(y))))).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Several heads with a scale of their own; the width of a head is what the reshape leaves."""

    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (
            nn.Linear(c, 8),
            nn.Linear(c, 8),
            nn.Linear(c, 4 * heads),
            nn.Linear(4 * heads, c),
        )

    def forward(self, x):
        n, _, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (
            layer(tokens).reshape(n, h * w, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = torch.softmax(0.5 * q @ k.transpose(-1, -2), dim=-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(n, -1, h, w)


class ChannelsLast(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.depth = nn.Conv2d(c, 2 * c, 3, padding=1, groups=c)
        self.out = nn.Conv2d(2 * c, c, 1)

    def forward(self, x):
        return self.out(self.depth(x))


STEPS = {  # name -> (module of width c, width afterwards)
    "conv": lambda c: (nn.Conv2d(c, c + 4, 3, padding=1), c + 4),
    "narrow": lambda c: (nn.Conv2d(c, 8, 1, bias=False), 8),
    "transposed": lambda c: (nn.ConvTranspose2d(c, 8, 2, stride=2), 8),
    "relu": lambda c: (nn.ReLU(inplace=True), c),
    "prelu": lambda c: (nn.PReLU(c), c),
    "group norm": lambda c: (nn.GroupNorm(2 if c % 2 == 0 else 1, c), c),
    "batch norm": lambda c: (nn.BatchNorm2d(c), c),
    "residual": lambda c: (Residual(c, 2 if c % 2 == 0 else 0), c),
    "gated": lambda c: (Gated(c), c),
    "excited": lambda c: (Excited(c), c),
    "dense": lambda c: (Dense(c), c + 4),
    "feed": lambda c: (Feed(c), c),
    "attention": lambda c: (Attention(c, 2), c),
    "one head": lambda c: (Attention(c, 1), c),
    "depthwise": lambda c: (ChannelsLast(c), c),
    "shuffle": lambda c: (nn.PixelShuffle(2), c // 4) if c % 4 == 0 else (nn.Upsample(scale_factor=2), c),
    "bilinear": lambda c: (nn.Upsample(scale_factor=2, mode="bilinear"), c),
    "pool": lambda c: (nn.AvgPool2d(2, ceil_mode=True), c),
}


def network(names, width=8):
    """Steps between a convolution from 4 latents and one to 3 colours; at most two of them double the pixels."""
    layers, doubled = [nn.Conv2d(4, width, 3, padding=1)], 0
    for name in names:
        doubled += name in ("transposed", "shuffle", "bilinear")
        if doubled <= 2 or name not in ("transposed", "shuffle", "bilinear"):
            layer, width = STEPS[name](width)
            layers.append(layer)
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1)).eval()
