"""Records what diffusers paints from an image, and anew where a mask says so, with the tiny pipelines that are there.

The pipelines are those that stable_diffusion.py and flow_models.py made. Beside each goes `first_image.json`, what was
asked, and `first_image.safetensors`: the images, the masks, the noise, the encoded image, and the latents at the end. Call:

    python first_images.py FIXTURES_DIR [NAME ...]

Needs the PyPI packages torch, transformers, diffusers, tokenizers, safetensors and pillow.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import torch_utils


class Recorded:
    """Numbers in place of a generator's, in the order in which they are asked for."""

    def __init__(self, numbers):
        self.numbers, self.used = numbers, 0

    def take(self, shape, **_):
        count = int(np.prod(shape))
        first, self.used = self.used, self.used + count
        return self.numbers[first : self.used].reshape(shape)


noise = Recorded(torch.empty(0))
# Before the pipelines and schedulers import it.
torch_utils.randn_tensor = lambda shape, *_, **__: noise.take(tuple(shape))

import diffusers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

PROMPT = "A red circle left of a blue square"
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
}
STABLE = {"size": (64, 64), "guidance": 3.0, "steps": 6, "noise": 9}
FLOW = {"size": (24, 16), "guidance": 3.5, "steps": 5, "noise": 3}
FAMILIES = {
    "sd15": (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline, STABLE),
    "sdxl": (diffusers.StableDiffusionXLImg2ImgPipeline, diffusers.StableDiffusionXLInpaintPipeline, STABLE),
    # What stands in for the autoencoder draws nothing.
    "sd_tiny": (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline, STABLE),
    # Their networks take the mask and the image beside the latents.
    "sd_inpaint": (None, diffusers.StableDiffusionInpaintPipeline, STABLE),
    "sdxl_inpaint": (None, diffusers.StableDiffusionXLInpaintPipeline, STABLE),
    "lcm": (diffusers.LatentConsistencyModelImg2ImgPipeline, None, STABLE | {"guidance": 8.5, "steps": 4}),
    "sd35": (diffusers.StableDiffusion3Img2ImgPipeline, diffusers.StableDiffusion3InpaintPipeline, FLOW),
    "flux_dev": (diffusers.FluxImg2ImgPipeline, diffusers.FluxInpaintPipeline, FLOW),
}


def picture(width, height, seed):
    """Colours that change from place to place, with a sharp edge."""
    rows, columns = np.mgrid[0:height, 0:width]
    colours = [127 + 100 * np.sin(columns / (5 + seed + c) + rows / (7 - c)) for c in range(3)]
    image = np.stack(colours, axis=2)
    image[height // 3 :, width // 2 :, seed % 3] = 250
    return image.clip(0, 255).astype(np.uint8)


def mask(width, height):
    """White in a corner, and grey to both sides of the middle."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width * 2 // 3] = 255
    image[height * 3 // 4 :, : width // 2] = [140, 120, 130]
    image[height * 3 // 4 :, width // 2 :] = [120, 125, 130]
    return image


def cases(name):
    """What is asked: the first of several is compared with the picture's own size."""
    own = {"scheduler": None, "mask": False, "image": "image"}
    if not FAMILIES[name][0]:
        own["mask"] = True
        yield own | {"name": "masked", "strength": 1.0}
        yield own | {"name": "masked_in_part", "strength": 0.7}
        yield own | {"name": "resized", "strength": 0.7, "image": "odd_image"}
        # A request without a mask paints all of it anew, as a white one does here.
        yield own | {"name": "unmasked", "strength": 0.8, "white": True}
        yield own | {"name": "whole", "strength": 1.0, "white": True}
        return
    yield own | {"name": "half", "strength": 0.5}
    yield own | {"name": "most", "strength": 0.8}
    yield own | {"name": "whole", "strength": 1.0}
    yield own | {"name": "resized", "strength": 0.7, "image": "odd_image"}
    if FAMILIES[name][1]:
        yield own | {"name": "masked", "strength": 1.0, "mask": True}
        yield own | {"name": "masked_in_part", "strength": 0.7, "mask": True}
    if name == "sd15":
        for scheduler in SCHEDULERS:
            yield own | {"name": scheduler, "scheduler": scheduler, "strength": 0.7}
            yield own | {"name": f"{scheduler}_masked", "scheduler": scheduler, "strength": 0.7, "mask": True}


def paint(name, pipes, case, images, settings):
    pipe = pipes[case["mask"]]
    own = pipe.scheduler
    if case["scheduler"]:
        changes = {"skip_prk_steps": True} if case["scheduler"] == "pndm" else {}
        pipe.scheduler = SCHEDULERS[case["scheduler"]].from_config(own.config, **changes)
    width, height = settings["size"]
    options = {
        "prompt": PROMPT,
        "image": Image.fromarray(images[case["image"]]),
        "num_inference_steps": settings["steps"],
        "guidance_scale": settings["guidance"],
        "strength": case["strength"],
        "output_type": "latent",
    }
    if case["mask"]:
        shown = np.full_like(images["mask"], 255) if case.get("white") else images["mask"]
        options["mask_image"] = Image.fromarray(shown)
    if case["mask"] or name in ("flux_dev", "sd35"):
        options |= {"width": width, "height": height}
    if name == "sd35":
        options["max_sequence_length"] = 256
    noise.used = 0
    latents = pipe(**options).images
    if name == "flux_dev":
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    pipe.scheduler = own
    return latents


def drawn(encoded):
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()


@torch.no_grad()
def record(name, folder):
    from_image, masked, settings = FAMILIES[name]
    half = "fp16" if list(folder.glob("unet/*.fp16.*")) else None
    pipes = {False: (from_image or masked).from_pretrained(folder, torch_dtype=torch.float32, variant=half)}
    if masked and not from_image:
        pipes[True] = pipes[False]
    elif masked:
        pipes[True] = masked.from_pipe(pipes[False]) if name == "sd35" else masked(**pipes[False].components)
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    width, height = settings["size"]
    images = {
        "image": picture(width, height, 1),
        "odd_image": picture(width + 6, height + 3, 2),
        "mask": mask(width, height),
    }
    generator = torch.Generator().manual_seed(7)
    pipe = pipes[False]
    scale = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    count = pipe.vae.config.latent_channels * (width // scale) * (height // scale)
    noise.numbers = torch.randn(count * settings["noise"], generator=generator)
    tensors = {key: torch.from_numpy(value.copy()) for key, value in images.items()} | {"noise": noise.numbers}
    colours = torch.from_numpy(images["image"]).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    noise.used = 0
    config = pipe.vae.config
    encoded = drawn(pipe.vae.encode(colours))
    tensors["encoded"] = (encoded - (config.shift_factor or 0.0)) * config.scaling_factor
    asked = []
    for case in cases(name):
        tensors[case["name"]] = paint(name, pipes, case, images, settings).contiguous()
        told = {key: case[key] for key in ("name", "scheduler", "strength", "image")}
        asked.append(told | {"mask": case["mask"] and not case.get("white", False)})
        print(f"  {case['name']}: std {tensors[case['name']].std():.3f}, {noise.used // count} times noise")
    case = {"prompt": PROMPT, "steps": settings["steps"], "guidance": settings["guidance"], "size": settings["size"]}
    (folder / "first_image.json").write_text(json.dumps(case | {"cases": asked}, indent=1) + "\n")
    save_file(tensors, folder / "first_image.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names or FAMILIES:
        print(name)
        record(name, options.fixtures / name)


if __name__ == "__main__":
    main()
