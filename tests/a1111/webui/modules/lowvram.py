"""Who moves weights to the device: as observed, A1111 with --medvram and --lowvram, Forge always.

There is no GPU here: `place` is the one part that would be on it, `moves` says which thread brought it there.
"""

import threading

place = None
moves = []


def bring(name):
    """The part comes to the device, and what was there leaves it: also the U-Net in the midst of sampling."""
    global place
    if place != name:
        place = name
        moves.append({"part": name, "thread": threading.current_thread().name})


def setup(model):
    """A1111: a hook of the U-Net, and methods of the VAE that are replaced on the object itself."""
    vae = model.first_stage_model
    encode, decode = vae.encode, vae.decode

    def encode_wrap(x):
        bring("vae")
        return encode(x)

    def decode_wrap(z):
        bring("vae")
        return decode(z)

    vae.encode, vae.decode = encode_wrap, decode_wrap
    model.unet.register_forward_pre_hook(lambda module, inputs: bring("unet"))
    model.lowvram = True


class ForgeVAE:
    """Forge's: loads its patcher before each decode; `first_stage_model` itself knows of no device."""

    def __init__(self, network):
        self.first_stage_model = network

    def decode(self, z):
        bring("vae")
        return (self.first_stage_model.decode(z) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
