"""A generation, with the hooks in the order that was observed on the real hosts."""

import copy
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from modules import extra_networks, images, infotext_utils, paths, script_callbacks, scripts, shared
from PIL import Image


class StableDiffusionProcessing:
    """Fields under their names in the hosts; conditionings are cached for all objects by what made them."""

    cached_c, cached_uc = [None, None], [None, None]
    cached_hr_c, cached_hr_uc = [None, None], [None, None]
    is_img2img = False

    def __init__(
        self, prompt="", negative_prompt="", steps=20, cfg_scale=2.0, width=128, height=128, n_iter=1,
        batch_size=1, seed=-1, styles=(), do_not_save_samples=False, enable_hr=False, hr_scale=2.0,
        hr_prompt="", denoising_strength=0.7, init_images=(), mask=None, script_args=(), runner=None,
        disable_extra_networks=False, **ignored,
    ):  # fmt: skip
        self.prompt, self.negative_prompt, self.styles = prompt, negative_prompt, list(styles or [])
        self.steps, self.cfg_scale = int(steps), float(cfg_scale)
        self.width, self.height = int(width), int(height)
        self.n_iter, self.batch_size, self.seed = int(n_iter), int(batch_size), int(seed)
        self.do_not_save_samples, self.enable_hr, self.hr_scale = do_not_save_samples, enable_hr, hr_scale
        self.hr_prompt, self.denoising_strength = hr_prompt, denoising_strength
        self.init_images, self.mask = list(init_images), mask
        self.script_args, self.scripts = tuple(script_args), runner
        self.extra_generation_params, self.comments = {}, {}
        self.extra_network_data = self.hr_extra_network_data = None
        self.hr_prompts = self.hr_negative_prompts = None
        self.disable_extra_networks = disable_extra_networks
        self.iteration = self.batch_index = 0
        tab = "img2img" if init_images else "txt2img"
        self.outpath_samples = str(Path(paths.data_path) / "outputs" / tab)
        self.cached_c, self.cached_uc = type(self).cached_c, type(self).cached_uc
        self.cached_hr_c, self.cached_hr_uc = type(self).cached_hr_c, type(self).cached_hr_uc
        self.sd_model = shared.sd_model

    def comment(self, text):
        self.comments[text] = 1

    def setup_prompts(self):
        count = self.n_iter * self.batch_size
        full = ", ".join([self.prompt, *self.styles])
        self.all_prompts = [full] * count
        self.all_negative_prompts = [self.negative_prompt] * count
        self.all_hr_prompts = [self.hr_prompt or full] * count
        self.all_hr_negative_prompts = [self.negative_prompt] * count
        self.seed = self.seed if self.seed >= 0 else random.randrange(2**31)
        self.all_seeds = self.all_subseeds = [self.seed + i for i in range(count)]

    def parse_extra_network_prompts(self):
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)
        if self.enable_hr:
            part = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
            self.hr_prompts = self.all_hr_prompts[part]
            self.hr_negative_prompts = self.all_hr_negative_prompts[part]
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.hr_prompts)

    def conditions(self, prompts, cache, data):
        key = json.dumps([prompts, self.steps, self.width, self.height,
                          {k: [v.items for v in values] for k, values in sorted(data.items())}])  # fmt: skip
        if cache[0] != key:
            cache[0] = key
            model = shared.sd_model
            cache[1] = torch.cat([model.encode(prompt, model.embeddings) for prompt in prompts])
        return cache[1]


class Processed:
    def __init__(self, p, images_list, infotexts, index_of_first_image):
        self.images, self.infotexts, self.index_of_first_image = images_list, infotexts, index_of_first_image
        self.all_prompts, self.all_seeds, self.seed = p.all_prompts, p.all_seeds, p.seed
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.info = infotexts[0] if infotexts else ""

    def js(self):
        names = ("all_prompts", "all_seeds", "infotexts", "index_of_first_image", "seed")
        return json.dumps({name: getattr(self, name) for name in names})


def create_infotext(p, index, grid=False):
    parameters = {
        "Steps": p.steps, "Sampler": "DPM++ 2M", "CFG scale": p.cfg_scale, "Seed": p.all_seeds[index],
        "Size": f"{p.width}x{p.height}", "Model": "portrait",
        "Denoising strength": p.denoising_strength if p.enable_hr or p.is_img2img else None,
        **p.extra_generation_params, "Version": "stand-in",
    }  # fmt: skip
    for name, value in parameters.items():  # with what the hosts have at hand there
        if callable(value):
            inside = 0 if grid else index - p.iteration * p.batch_size
            parameters[name] = value(p=p, index=inside, use_main_prompt=grid)
    return infotext_utils.write(p.all_prompts[index], p.all_negative_prompts[index], parameters)


@torch.no_grad()
def process_images(p):
    p.scripts.setup(p)
    p.scripts.before_process(p)
    p.setup_prompts()
    p.is_img2img = bool(p.init_images)
    p.scripts.process(p)
    output, infotexts = [], []
    shared.state.job_count = p.n_iter
    for n in range(p.n_iter):
        p.iteration = n
        shared.state.skipped = False
        if shared.state.interrupted:
            break
        output += _iteration(p, n, infotexts)
        shared.state.job_no += 1
    first = 0
    if len(output) > 1:
        grid = images.image_grid(output)
        text = create_infotext(p, 0, grid=True)
        output.insert(0, grid)
        infotexts.insert(0, text)
        first = 1
        if not p.do_not_save_samples:
            images.save_image(grid, p.outpath_samples.replace("2img", "2img-grids"), "grid", p, text)
    if p.extra_network_data is not None and not p.disable_extra_networks:
        extra_networks.deactivate(p, p.extra_network_data)
    processed = Processed(p, output, infotexts, first)
    p.scripts.postprocess(p, processed)
    return processed


def _iteration(p, n, infotexts):
    part = slice(n * p.batch_size, (n + 1) * p.batch_size)
    p.prompts, p.negative_prompts = p.all_prompts[part], p.all_negative_prompts[part]
    p.seeds = p.all_seeds[part]
    details = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.seeds}
    p.scripts.before_process_batch(p, **details)
    p.parse_extra_network_prompts()
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    p.scripts.after_extra_networks_activate(p, **details, extra_network_data=p.extra_network_data)
    p.scripts.process_batch(p, **details)
    latents = sample(p)
    p.scripts.post_sample(p, latents)
    pixels = (shared.sd_model.decode_first_stage(latents) / 2 + 0.5).clamp(0, 1)
    p.scripts.postprocess_batch(p, images=pixels, batch_number=n)
    batch = scripts.PostprocessBatchListArgs(list(pixels))
    p.scripts.postprocess_batch_list(p, batch, batch_number=n)
    finished = []
    for i, image in enumerate(batch.images):
        p.batch_index = i
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        args = scripts.PostprocessImageArgs(picture, i)
        p.scripts.postprocess_image(p, args)
        p.scripts.postprocess_maskoverlay(p, args)
        p.scripts.postprocess_image_after_composite(p, args)
        text = create_infotext(p, n * p.batch_size + i)
        if not p.do_not_save_samples:
            images.save_image(args.image, p.outpath_samples, str(p.seeds[i]), p, text)
        args.image.info["parameters"] = text
        finished.append(args.image)
        infotexts.append(text)
    return finished


# ---- sampling


def sample(p):
    cond = p.conditions(p.prompts, p.cached_c, p.extra_network_data)
    uncond = p.conditions(p.negative_prompts, p.cached_uc, p.extra_network_data)
    shape = (4, p.height // 8, p.width // 8)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in p.seeds])
    if not p.init_images:
        latents = denoise(p, noise, cond, uncond, None, 1.0)
    else:
        latents = _redraw(p, noise, cond, uncond)
    if not p.enable_hr:
        return latents
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.hr_extra_network_data)
    cond = p.conditions(p.hr_prompts, p.cached_hr_c, p.hr_extra_network_data)
    uncond = p.conditions(p.hr_negative_prompts, p.cached_hr_uc, p.hr_extra_network_data)
    large = F.interpolate(latents, scale_factor=p.hr_scale, mode="bilinear")
    noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(p.seeds[0]))
    return denoise(p, noise, cond, uncond, large, p.denoising_strength)


def _redraw(p, noise, cond, uncond):
    """img2img, and inpainting where there is a mask (white is drawn anew)."""
    image = p.init_images[0].convert("RGB").resize((p.width, p.height))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    start = shared.sd_model.encode_first_stage(pixels).expand(len(noise), -1, -1, -1)
    result = denoise(p, noise, cond, uncond, start, p.denoising_strength)
    if p.mask is None:
        return result
    small = p.mask.convert("L").resize((p.width // 8, p.height // 8))
    inside = torch.from_numpy(np.array(small)).float()[None, None] / 255
    return inside * result + (1 - inside) * start


def denoise(p, noise, cond, uncond, start, strength):
    """DPM-Solver++ (2M) in the sigma scale, over the last `strength` of the steps."""
    model = shared.sd_model
    timesteps, sigmas = model.schedule(p.steps)
    first = max(0, p.steps - max(1, round(p.steps * strength))) if start is not None else 0
    total = p.steps - first
    shared.state.sampling_steps, shared.state.sampling_step = total, 0
    x = noise * (1 + sigmas[0] ** 2).sqrt() if start is None else start + noise * sigmas[first]
    x = x.float()
    p.scripts.process_before_every_sampling(p, x=x, noise=noise, c=cond, uc=uncond)
    before, last_h = None, None
    for k in range(first, p.steps):
        sigma, following = float(sigmas[k]), float(sigmas[k + 1])
        x0 = _guided(p, x, sigma, float(timesteps[k]), cond, uncond, total)
        if shared.state.interrupted or shared.state.skipped:
            return x0
        shared.state.current_latent = x0
        shared.state.set_current_image()
        # The hosts count after the callback of the second step, so that it sees 0 twice.
        shared.state.sampling_step = max(0, k - first)
        if shared.NEO:
            shared.state.preview_step = k - first + 1
        if following == 0:
            return x0
        h = float(np.log(sigma / following))
        mixed = x0
        if before is not None:
            ratio = last_h / h
            mixed = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * before
        x = following / sigma * x - float(np.expm1(-h)) * mixed
        before, last_h = x0, h
    return x


def _guided(p, x, sigma, timestep, cond, uncond, total):
    """Prediction of the clean latents, with the callbacks of a step."""
    step = shared.state.sampling_step
    if paths.WHOLE and p.width * p.height >= 512 * 512:
        time.sleep(paths.SLOW_STEP)
    doubled = torch.cat([x, x])
    parameters = script_callbacks.CFGDenoiserParams(doubled, None, sigma, step, total, cond, uncond)
    script_callbacks.call("cfg_denoiser", parameters)
    text = torch.cat([cond, uncond.expand_as(cond)])
    noise = shared.sd_model.noise_prediction(parameters.x, sigma, timestep, text)
    denoised = parameters.x - sigma * noise
    if not shared.FORGE:
        script_callbacks.call("cfg_denoised", script_callbacks.CFGDenoisedParams(denoised, step, total, None))
    with_prompt, without = denoised.chunk(2)
    guided = without + p.cfg_scale * (with_prompt - without)
    after = script_callbacks.AfterCFGCallbackParams(guided, step, total)
    script_callbacks.call("cfg_after_cfg", after)
    return after.x


def clone(p):
    """What an X/Y/Z plot and face-repair scripts do before they change something."""
    other = copy.copy(p)
    other.styles = list(p.styles)
    return other
