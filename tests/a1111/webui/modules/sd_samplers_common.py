import torch
import torch.nn.functional as F
from modules import shared
from PIL import Image

# A rough linear look at the latents: good enough to see where a face is, an eighth of the size.
MIX = torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [-0.2, -0.1, 0.1], [-0.2, -0.2, -0.3]])


def single_sample_to_image(sample, approximation=None):
    """2: linear, 1: half of the size, 0 and 3: full size."""
    with torch.no_grad():
        if approximation == 2:
            pixels = (sample.permute(1, 2, 0) @ MIX).permute(2, 0, 1)[None]
        else:
            pixels = shared.sd_model.vae.decode(sample[None])
            pixels = F.interpolate(pixels, scale_factor=0.5, mode="area") if approximation == 1 else pixels
    levels = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(levels)
