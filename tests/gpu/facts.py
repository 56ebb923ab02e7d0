"""The machine: versions, card, architectures, torch's kernel; and that a worker would take the devices here."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
import transformers

from tests.gpu.ground import GIB, Ground
from worker.device.engines.packing import varlen_kernel
from worker.device.inventory import choose_devices, examine, list_devices


def run(ground: Ground) -> None:
    ground.say(
        python=sys.version.split()[0],
        torch=torch.__version__,
        cuda=torch.version.cuda,
        transformers=transformers.__version__,
        cores=os.cpu_count(),
    )
    ground.say(varlen=str(varlen_kernel()))
    chosen = choose_devices("all")
    if ground.dry:
        ground.say(devices=chosen)
        return
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout)
    properties = torch.cuda.get_device_properties(0)
    ground.say(
        gpu=properties.name,
        capability=(properties.major, properties.minor),
        gib=round(properties.total_memory / GIB, 1),
        architectures=torch.cuda.get_arch_list(),
    )
    listing = list_devices()
    ground.check("nvidia-smi lists the devices", listing.devices and not listing.trouble, listing=listing)
    ground.check("`--devices all` takes them", chosen == [device.id for device in listing.devices], chosen=chosen)
    for device, found in zip(chosen, examine(chosen), strict=True):
        ground.check(f"device {device} is usable", not found.unusable, found=found)
