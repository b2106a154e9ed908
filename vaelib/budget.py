"""What suits a training of so many minutes on the machine at hand, as benchmarks/ found it.

No torch here: the machine comes as one of the words of `hardware.kind`.
"""

import math

MACHINES = {
    "bf16": "a processor that computes in bf16",
    "fp32": "a processor without fast bf16",
    "gpu": "a GPU",
    "other": "a processor of unknown kind",
}
NETWORK = ("widths", "latent_dim", "n_res_blocks", "prior")
SCHEDULE = ("batch_size", "lr", "kl_warmup")
# from so many minutes on, NETWORK for images of up to 32x32 pixels: where there is bf16, or not
FAST = {0: ([8, 32], 32, 1), 2: ([8, 32, 64], 32, 1), 5: ([8, 32, 64], 50, 2),
        10: ([16, 32, 64], 50, 2)}  # fmt: skip
SLOW = {0: ([4, 32], 32, 1), 2: ([8, 32], 32, 1), 5: ([8, 32, 64], 32, 1),
        10: ([8, 32, 64], 50, 2)}  # fmt: skip
LARGE = {0: ([32, 64, 128], 64, 1)}  # for larger images
FLOW = {"n_layers": 6, "hidden": 64}  # the prior of small binary images
FEW = 8  # latents: with 2 a learned prior saved nothing (notebook 14), between it is untried
# from so many minutes on, SCHEDULE: the shorter the run, the higher the rate
SCHEDULES = {
    "bf16": {0: (64, 5e-3, 100), 4: (128, 4e-3, 0)},
    "fp32": {0: (128, 6e-3, 100), 2: (128, 4e-3, 0)},
}
WORTH = 20.0  # minutes from which trying whether compiling pays takes a small part
NARROW = 8  # channels at half of the image's size up to which compiling saves nothing in fp32
# why it is compiled or not
WHY = {
    ("bf16", True): "compiling pays there within two minutes",
    ("bf16", False): "compiling would take longer than it saves",
    ("fp32", False): "compiling so narrow a network saves nothing there",
}


def suiting(recipe: dict, kind: str) -> dict:
    """What suits the recipe's minutes and images on such a machine: NETWORK and SCHEDULE."""
    from vaelib.data import source

    size = source(recipe["data"]).size or recipe["image_size"]
    sides = [*size, *size][:2] if isinstance(size, list | tuple) else [size, size]
    small = FAST if kind in ("bf16", "gpu") else SLOW
    tables = (
        small if math.prod(sides) <= 32 * 32 else LARGE, SCHEDULES.get(kind, SCHEDULES["fp32"])
    )  # fmt: skip
    found = [table[max(at for at in table if at <= recipe["minutes"])] for table in tables]
    prior = "flow" if tables[0] is not LARGE and flow_pays(recipe, kind) else "standard"
    return dict(zip(NETWORK + SCHEDULE, (*found[0], prior, *found[1]), strict=True))


def flow_pays(recipe: dict, kind: str) -> bool:
    """Whether small images get a flow for their prior: of coin flips, on a processor."""
    enough = (recipe.get("latent_dim") or FEW) >= FEW
    trained_by = recipe.get("likelihood", "bernoulli"), recipe.get("objective", "elbo")
    tried = trained_by in (("bernoulli", "elbo"), ("bernoulli", "iwae"))
    return kind in ("bf16", "fp32") and enough and tried


def fill_in(recipe: dict, kind: str) -> list[str]:
    """Put what suits the recipe's minutes where it is open (None); returns which keys were.

    Whether to compile stays open; see `training.settled`.
    """
    opened = [key for key in (*NETWORK, *SCHEDULE, "compile") if recipe[key] is None]
    if set(opened) - {"compile"}:
        recipe |= {key: v for key, v in suiting(recipe, kind).items() if key in opened}
    if "prior" in opened and recipe["prior"] == "flow":
        recipe["prior_args"] = recipe.get("prior_args") or dict(FLOW)
    return opened


def compiles(recipe: dict, kind: str) -> tuple[bool | None, str]:
    """Whether to compile in the recipe's minutes on such a machine, and why.

    None where only trying tells.
    """
    minutes, narrow = recipe["minutes"], recipe["widths"][0] <= NARROW
    if kind == "bf16" or (kind == "fp32" and narrow and recipe["backbone"] == "unet"):
        pays = kind == "bf16" and minutes >= 2
        return pays, WHY[kind, pays]
    return (
        (None, "")
        if minutes >= WORTH
        else (False, "to try whether compiling pays would take too long")
    )


def said(recipe: dict, opened: list[str], kind: str, why: str, before: dict | None = None) -> str:
    """One line: what was chosen for the recipe's minutes on such a machine, and why.

    `opened` are the keys that were; `before` is the recipe that they were in, if any.
    """
    idle = ("widths", "n_res_blocks") if recipe["backbone"] == "mlp" else ()
    words = [
        f"{key} {recipe[key]}" + (f" (was {before[key]})" if before and key in before else "")
        for key in opened if key not in idle
    ]  # fmt: skip
    if before:
        words.append("all else as in that recipe, or as typed")
    s = "s" * (recipe["minutes"] != 1)
    head = f"{recipe['minutes']:g} minute{s} on {MACHINES[kind]}: "
    return f"{head}{'; '.join(words)}" + (f" ({why})" if why else "")
