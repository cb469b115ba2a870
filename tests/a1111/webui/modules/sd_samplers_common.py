import torch
import torch.nn.functional as F
from modules import shared
from PIL import Image

# A rough linear look at Stable Diffusion's latents. All approximations are made for those, and for a model
# with latents of its own they show where something is and no face.
MIX = torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [-0.2, -0.1, 0.1], [-0.2, -0.2, -0.3]])


def single_sample_to_image(sample, approximation=None):
    """2: an eighth of the size, 1: a quarter, 3: full size, all by the same map; 0: the model's VAE."""
    with torch.no_grad():
        if approximation == 0:
            pixels = shared.sd_model.decode_first_stage(sample[None])
        else:
            pixels = (sample.permute(1, 2, 0) @ MIX).permute(2, 0, 1)[None]
            pixels = F.interpolate(pixels, scale_factor={1: 2, 2: 1, 3: 8}[approximation], mode="bilinear")
    levels = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(levels)
