"""Tiny float64 models with the shape of the real ones, for exact comparisons on a CPU in milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fair_adapter.shared.sampling import Conditioning, Guidance

LATENT = (4, 8, 8)


class TinyUNet(nn.Module):
    """Convolutions at two resolutions with a skip, a time embedding and attention to the prompt."""

    def __init__(self, width: int = 12, text: int = 6) -> None:
        super().__init__()
        self.enter = nn.Conv2d(LATENT[0], width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.query = nn.Linear(width, text)
        self.key = nn.Linear(text, text)
        self.value = nn.Linear(text, width)
        self.time = nn.Linear(4, width)
        self.up = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(2 * width, LATENT[0], 3, padding=1)
        self.calls: list[int] = []

    def forward(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls.append(len(inputs))
        tokens = conditioning["prompt"]  # (B, L, text)
        phase = timesteps.to(inputs.dtype)[:, None] / 1000 * inputs.new_tensor([1.0, 3.0, 7.0, 15.0])
        skip = functional.silu(self.enter(inputs) + self.time(torch.sin(phase))[:, :, None, None])
        low = functional.silu(self.down(skip))  # (B, width, 4, 4)
        pixels = low.flatten(2).transpose(1, 2)
        scores = self.query(pixels) @ self.key(tokens).transpose(1, 2)
        low = low + (scores.softmax(dim=-1) @ self.value(tokens)).transpose(1, 2).reshape(low.shape)
        high = functional.interpolate(self.up(low), scale_factor=2, mode="nearest")
        return self.leave(torch.cat([high, skip], dim=1)) + 0.3 * inputs


class TinyTextEncoder(nn.Module):
    """A trainable soft prompt before fixed tokens, mixed by one layer."""

    def __init__(self, tokens: int = 4, text: int = 6) -> None:
        super().__init__()
        self.soft = nn.Parameter(torch.randn(2, text))
        self.register_buffer("fixed", torch.randn(tokens, text))
        self.mix = nn.Linear(text, text)

    def forward(self) -> Tensor:
        """(1, L, text)."""
        return torch.tanh(self.mix(torch.cat([self.soft, self.fixed])))[None]


class TinyWorld:
    """Network, text encoder, noise and a loss on z_0, in float64 and deterministic."""

    def __init__(self, images: int = 3, scale: float = 4.0, train_network: bool = True) -> None:
        torch.manual_seed(0)
        self.network = TinyUNet().double().requires_grad_(train_network)
        self.text = TinyTextEncoder().double()
        self.empty = torch.randn(1, 6, 6, dtype=torch.float64)
        self.noise = torch.randn(images, *LATENT, dtype=torch.float64)
        self.wanted = torch.randn(images, *LATENT, dtype=torch.float64)
        self.scale = scale

    def guidance(self, text: bool = True) -> Guidance:
        """Prompt of the trainable text encoder (both branches go through its last layer) and an empty
        prompt."""
        empty = torch.tanh(self.text.mix(self.empty))
        if not text:
            return Guidance({"prompt": self.text().detach()}, {"prompt": empty.detach()}, self.scale)
        return Guidance({"prompt": self.text()}, {"prompt": empty}, self.scale)

    def objective(self, latents: Tensor) -> Tensor:
        """A loss that is not linear in z_0, averaged over the images."""
        return (torch.tanh(latents) - self.wanted).square().flatten(1).mean(dim=1).mean()

    def cotangent(self, latents: Tensor) -> Tensor:
        """g = dL/dz_0."""
        latents = latents.detach().requires_grad_(True)
        return torch.autograd.grad(self.objective(latents), latents)[0]

    def gradients(self) -> Tensor:
        """Everything in `.grad`, flat, then cleared."""
        flat = []
        for module in (self.network, self.text):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    grad = parameter.grad
                    flat.append((torch.zeros_like(parameter) if grad is None else grad).flatten())
            module.zero_grad(set_to_none=True)
        return torch.cat(flat)
