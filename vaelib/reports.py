"""Numbers as text: a run's, and a block of metrics.json, also compared with another one."""

from pathlib import Path
from shlex import quote

TOLERANCE = 0.02  # nats (or dB): what another processor's rounding may change in a mean


def report(block: dict) -> list[str]:
    """A block of metrics as lines to read."""
    n_images, bound = block["n_images"], block.get("bound")
    names = {"neg_elbo": "-ELBO", "reconstruction": "reconstruction", "kl": "KL"}
    rows = [(name, block[key], n_images) for key, name in names.items() if key in block]
    if bound:  # an autoencoder has none, nor an ELBO
        name = f"bound, {bound['n_importance']:,} samples"
        rows.append((name, bound["neg_log_px"], bound["n_images"]))
    head = (
        f"{block['data']} {block['split']}, binarisation: {block['binarisation']}; nats per image"
    )
    lines = [f"{name:>22} {v:9.3f} +- {e:.3f}  ({n:,} images)" for name, (v, e), n in rows]
    if "bits_per_dim" in block:
        lines.append(f"{'bits per dimension':>22} {block['bits_per_dim']:9.3f}")
    if "psnr" in block:
        lines.append(f"{'PSNR, dB':>22} {block['psnr'][0]:9.3f} +- {block['psnr'][1]:.3f}")
    if "sigma" in block:
        lines.append(f"{'sigma':>22} {block['sigma']:9.5f}")
    lines += [f"{name:>22} {score:9.3f}" for name, score in block.get("scores", {}).items()]
    for name, value in block.get("samples", {}).items():
        if name.startswith("two_sample"):
            lines.append(f"{name:>22} {value[0]:9.3f} +- {value[1]:.3f}")
        elif name == "frechet":
            lines.append(f"{name:>22} {value:9.2f}")
    units = block["active_units"]
    units = "unknown of one image" if units is None else f"{units:5d}"
    return [head, *lines, f"{'active units':>22} {units}"]


def compare(old: dict, new: dict) -> list[str]:
    """What differs between two computations of one block by more than rounding."""
    old_bound, bound = old.get("bound", {}), new.get("bound", {})
    exact = ("sha256", "n_images", "active_units")  # binarisation is told in words, by the images
    means = ("neg_elbo", "reconstruction", "kl", "psnr")
    found = [(key, old.get(key), new[key]) for key in exact]
    found += [
        (f"the bound's {k}", old_bound.get(k), bound.get(k)) for k in ("n_images", "n_importance")
    ]
    found = [(key, before, now) for key, before, now in found if before != now]
    pairs = [(key, old.get(key), new.get(key)) for key in means]
    pairs.append(("bound", old_bound.get("neg_log_px"), bound.get("neg_log_px")))
    for key, before, now in pairs:
        before, now = before and before[0], now and now[0]  # of [mean, error]; None where missing
        near = None not in (before, now) and abs(before - now) <= TOLERANCE
        if not (near or before is now is None):
            found.append((key, before, now))
    before, now = old.get("scores", {}), new.get("scores", {})
    for key in sorted(before.keys() | now.keys()):
        if abs(before.get(key, 9) - now.get(key, 9)) > TOLERANCE:
            found.append((key, before.get(key), now.get(key)))
    before, now = old.get("samples"), new.get("samples")
    for key in ("two_sample", "two_sample_means") if before and now else ():
        if abs(before[key][0] - now[key][0]) > 2 * now[key][1]:  # it is trained anew
            found.append((key, before[key][0], now[key][0]))
    distances = [(old or {}).get("frechet") for old in (before, now)]
    if all(distances) and abs(distances[0] / distances[1] - 1) > 0.02:
        found.append(("the Frechet distance", *distances))
    return [f"{key} was {before}, is {now}" for key, before, now in found]


def log_line(row: dict) -> str:
    """A row of the history as a line of text."""
    numbers = [f"{k} {v:,.4g}" for k, v in row.items() if k not in ("step", "seconds")]
    return f"step {row['step']:,}, {row['seconds']:,.1f} s: {', '.join(numbers)}\n"


def head(log: Path) -> str:
    """The lines of a log from before the first step: what was chosen, and why."""
    lines = log.read_text(encoding="utf-8").splitlines(True) if log.exists() else []
    return "".join(line for line in lines if not line.startswith("step "))


def write_tensorboard(folder: Path, row: dict) -> None:
    """Add a row of the history to the run's TensorBoard files."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as board:
        for name in row.keys() - {"step"}:
            board.add_scalar(name, row[name], row["step"])


def summary(rows: list[dict], data: str, n_eval: int, folder: Path) -> str:
    """What a finished run came to, and what to type next."""
    best = max(rows, key=lambda row: row["val_objective"])
    name, value = ("-ELBO", "val_elbo") if "val_elbo" in best else ("-objective", "val_objective")
    typed = quote(str(folder))
    return (
        f"{folder}: {name} {-best[value]:.2f} nats on {n_eval:,} images of {data} val, "
        f"at step {best['step']:,}.\n"
        f"Next: vaelib sample {typed}; vaelib evaluate {typed}"
    )
