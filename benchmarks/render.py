"""results.json as a page: for each part its tables, medians over the rounds with their spread, and its goals."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from scaling import draw, sentences

FIGURE = Path(__file__).parents[1] / "docs" / "scaling.png"

Rounds = list[dict[str, Any]]
Cases = dict[str, dict[str, Rounds]]

INTRODUCTION = """What `make bench` measured. Candidates took turns, A B C A B C; figures are medians over the
rounds, with the least and the most of them; a ratio is the median of the rounds' ratios, since machines differ and
change with the hour."""

TRAINING = """Images a second of the training loop in the epochs after the first, without validation, tracking and
start-up. Every candidate trains nets of the same layers and first weights on the same images, by Adam at a constant
rate of 0.001, and has the same threads. The peers' nets are torch's own layers in torch's own order of memory, as one
writes them by hand, but where it says with elbolab's nets: those compute the same faster on a CPU. The loss is the
mean over its last epoch of the negative ELBO (of the cnn the cross-entropy), in nats, constants included: a faster
wrong training would show. What pythae's IWAE minimises has the gradient of the bound but not its value, so that for
iwae too the ELBO is given. The vae trains on 20,000 images, the iwae on 4,000, the cnn on 10,000, latent_opt on 8,000.
elbolab as it comes multiplies in bfloat16 while it trains where the CPU is fast at it (`precision`); its peers, as
they come, in float32."""

LIMIT = """Floating-point operations of the forward and backward passes, counted by `torch.utils.flop_counter`, over
the time of the whole training loop, as a share of the rate of the best product of square matrices of the same type,
measured between the epochs: {}."""

EVALUATION = """{}, by an untrained vae of equal weights. The decodes of pythae's `get_nll` were counted in its
decoder, since it draws other numbers of samples an image than it is asked for: {}. It also encodes the image anew
for each of them. The bare decoder is at its best at a batch of {:.0f}; it alone, which draws nothing and compares
with no image, makes {:.2f} times as many as pythae."""

START = "The command `elbolab vae` in an empty folder with a prepared store, its files in the memory of the machine."

TRACKING = """A training of the vae at its defaults took {} s and waited {} s for its tracking: {} % ({}). Sending,
in a thread beside it, took {} s of a processor."""

OPERATORS = """The operators that took most of an epoch at batch 64 by themselves, without those that they call, by
`torch.profiler`."""

COMPILED = """A step's forward and backward pass and its optimiser, with the terms and the loss of the batch as one
graph that `torch.compile` has compiled, or as they come, in turn in one process and with the same random numbers. It
repays itself after so many steps as make up for the seconds that it compiled."""

NOT_MEASURED = """What needs a GPU: a vae at batch 64 and 1,024 against pythae (goal: 8 times at 64), 30 epochs of
20,000 images (goal: 15 s), log p(x) of 10,000 images at 1,000 samples (goal: 60 s), the share of its bandwidth and
arithmetic, and 16 trainings as one (goal: 6 times the throughput of one after another)."""


def render(results: dict[str, Any]) -> str:
    """The whole page; a part that was not run is not in it."""
    wheres = list(dict.fromkeys(result["where"] for result in results.values()))
    blocks = ["# Benchmarks", INTRODUCTION, *(wheres if len(wheres) == 1 else [])]
    for part, (title, write) in SECTIONS.items():
        if part in results:
            where = [results[part]["where"]] if len(wheres) > 1 else []
            blocks += [f"## {title}", "; ".join([*where, results[part]["how"]]) + ".", *write(results[part]["cases"])]
    blocks += ["## Not measured", NOT_MEASURED]
    return "\n\n".join(block if block[0] in "#|-!" else fill(block, 120) for block in blocks) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def values(rounds: Rounds, key: str) -> list[float]:
    return [found[key] for found in rounds]


def spread(found: list[float], form: str = ",.0f", scale: float = 1) -> list[str]:
    """Median, and least to most."""
    low, middle, high = (format(scale * value, form) for value in (min(found), median(found), max(found)))
    return [middle, f"{low} to {high}"]


def ratio(case: dict[str, Rounds], other: str, key: str) -> float | None:
    """How many times ``other``'s figure elbolab's is; none where it was not measured."""
    pairs = zip(values(case["elbolab"], key), values(case[other], key), strict=False)
    ratios = [own / theirs for own, theirs in pairs]
    return median(ratios) if ratios else None


def goal(
    text: str, found: float | None, least: float | None = None, most: float | None = None, form: str = ".2f"
) -> str:
    """A line that says whether a goal was reached."""
    if found is None:
        return f"- Goal: {text}: not measured."
    reached = found >= least if least is not None else most is not None and found <= most
    return f"- Goal: {text}: {found:{form}}, {'reached' if reached else '**not reached**'}."


def comparison(case: dict[str, Rounds], key: str, unit: str, more: dict[str, Callable[[Rounds], str]]) -> str:
    """The candidates of a case beside each other."""
    rows = []
    for name, rounds in case.items():
        if not rounds:
            rows.append([name, "not measured", *[""] * (2 + len(more))])
            continue
        times = "" if name == "elbolab" else f"{ratio(case, name, key):.2f}"
        rows.append([name, *spread(values(rounds, key)), times, *(column(rounds) for column in more.values())])
    return table(["candidate", unit, "least to most", "elbolab's is ... times it", *more], rows)


COLUMNS: dict[str, Callable[[Rounds], str]] = {
    "loss, nats": lambda rounds: " (".join(spread(values(rounds, "loss"), ".2f")) + ")",
    "most memory, MiB": lambda rounds: f"{max(values(rounds, 'peak_bytes')) / 2**20:,.0f}",
}


def training(cases: Cases) -> list[str]:
    blocks = [TRAINING]
    for name, case in cases.items():
        blocks += [f"### {name}", comparison(case, "images_per_s", "images/s", COLUMNS)]
    first = cases["vae, batch 64"]
    goals = [
        goal("vae at batch 64, at least 1.5 times pythae", ratio(first, "pythae", "images_per_s"), 1.5),
        goal(
            "vae at batch 64, at least 1.3 times the DataLoader loop",
            ratio(first, "DataLoader loop", "images_per_s"),
            1.3,
        ),
    ]
    return [*blocks, "\n".join(goals)]


def rows(cases: Cases) -> list[str]:
    (case,) = cases.values()
    step = case["elbolab"]
    ratios = spread(values(step, "ratio"), ".2f")
    sentence = (
        f"A step of `latent_opt` at batch 64, on rows and decoder, took {spread(values(step, 'step_ms'), '.1f')[0]} "
        "ms; forward, backward and Adam of its decoder on given latent vectors, in turn with it, "
        f"{spread(values(step, 'decoder_ms'), '.1f')[0]} ms: {ratios[0]} times as long ({ratios[1]})."
    )
    reached = goal("latent_opt's step, at most 1.15 times its decoder's", median(values(step, "ratio")), most=1.15)
    return [sentence, comparison(case, "images_per_s", "images/s", COLUMNS), reached]


def limit(cases: Cases) -> list[str]:
    # Where the CPU is not fast at bfloat16, both trainings of a round were in float32.
    named: defaultdict[tuple[str, int, str], Rounds] = defaultdict(list)
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for share in (share for found in cases["limit"]["elbolab"] for share in found["shares"]):
        named[share["model"], share["batch"], share["precision"]].append(share)
        rates[share["precision"]].append(share["product_flops_per_s"])
    rows = [
        [
            f"{model}, batch {batch}, {precision}",
            f"{median(values(found, 'flops')) / 1e6:,.1f}",
            spread(values(found, "images_per_s"))[0],
            *spread(values(found, "share"), ".0f", 100),
        ]
        for (model, batch, precision), found in named.items()
    ]
    best = [
        "of {} {} thousand million operations a second ({})".format(precision, *spread(found, ".0f", 1e-9))
        for precision, found in rates.items()
    ]
    header = ["model", "million operations an image", "images/s", "share, %", "least to most"]
    goals = [
        goal(f"{model} in {precision}, at least 60 %", 100 * median(values(found, "share")), 60, form=".0f")
        for (model, batch, precision), found in named.items()
        if batch == 256
    ]
    return [LIMIT.format(", ".join(best)), table(header, rows), "At batch 256:", "\n".join(goals)]


def evaluation(cases: Cases) -> list[str]:
    name, case = next(iter(cases.items()))
    columns = {
        "log p(x), nats": lambda rounds: f"{median(values(rounds, 'log_px')):.1f}" if "log_px" in rounds[0] else ""
    }
    drawn = ", ".join(
        f"{count:,.0f} where {int(asked):,} are asked for" for asked, count in case["pythae"][0]["drawn"].items()
    )
    batch = median(values(case["bare decoder"], "batch"))
    speeds = [values(case[candidate], "decodes_per_s") for candidate in ("bare decoder", "pythae")]
    times = median(bare / theirs for bare, theirs in zip(*speeds, strict=True))
    text = EVALUATION.format(f"{name[0].upper()}{name[1:]}", drawn, batch, times)
    goals = [
        goal("at least 3 times pythae", ratio(case, "pythae", "decodes_per_s"), 3),
        goal("at least 0.6 of the bare decoder", ratio(case, "bare decoder", "decodes_per_s"), 0.6),
    ]
    return [text, comparison(case, "decodes_per_s", "decodes/s", columns), "\n".join(goals)]


def start(cases: Cases) -> list[str]:
    rounds = cases["start"]["elbolab"]
    rows = [[part, *spread([found["parts"][part] for found in rounds], ".2f")] for part in rounds[0]["parts"]]
    rows.append(["from the command to the first loss", *spread(values(rounds, "seconds"), ".2f")])
    rows.append(["`elbolab --help`", *spread(values(rounds, "help_seconds"), ".2f")])
    goals = [
        goal("`elbolab vae` to its first loss, under 4 s", median(values(rounds, "seconds")), most=4),
        goal("`elbolab --help`, under 0.4 s", median(values(rounds, "help_seconds")), most=0.4),
    ]
    return [START, table(["part", "seconds", "least to most"], rows), "\n".join(goals)]


def operators(cases: Cases) -> list[str]:
    blocks = [OPERATORS]
    for model, case in cases.items():
        (found,) = case["elbolab"]
        rows = [
            [f"`{name}`", f"{100 * share:.0f}", f"{found['calls'][name]:,}"] for name, share in found["shares"].items()
        ]
        blocks += [f"### {model}", table(["operator", "share, %", "calls"], rows)]
    return blocks


def compiled(cases: Cases) -> list[str]:
    rows = []
    for name, case in cases.items():
        rounds = case["elbolab"]
        eager, faster = (median(values(rounds, key)) for key in ("eager_ms", "compiled_ms"))
        compiling = median(values(rounds, "compile_s"))
        ratios = [found["eager_ms"] / found["compiled_ms"] for found in rounds]
        repaid = f"{1000 * compiling / (eager - faster):,.0f}" if eager > faster else "never"
        label = f"{name}, {rounds[0]['precision']}"
        rows.append([label, f"{eager:.2f}", f"{faster:.2f}", *spread(ratios, ".2f"), f"{compiling:.1f}", repaid])
    header = ["training", "ms a step", "compiled", "times as fast", "least to most", "compiling, s", "repaid after"]
    return [COMPILED, table(header, rows)]


def population(cases: Cases) -> list[str]:
    rounds = cases["population"]["elbolab"]
    alone, beside = (spread(values(rounds, key), ".1f")[0] for key in ("alone_s", "beside_s"))
    ratios = values(rounds, "ratio")
    text = (
        f"Four trainings of the vae on 8,000 images, one epoch each: one after another {alone} s, beside each other in "
        f"one process, fifty steps a turn, {beside} s, {' ('.join(spread(ratios, '.2f'))}) times as long."
    )
    return [text, goal("on a CPU at most 1.1 times", median(ratios), most=1.1)]


def tracking(cases: Cases) -> list[str]:
    rounds = cases["tracking"]["elbolab"]
    share = spread(values(rounds, "share"), ".2f", 100)
    wall, waiting, sending = (spread(values(rounds, key), ".2f")[0] for key in ("wall_s", "waiting_s", "sending_s"))
    text = TRACKING.format(wall, waiting, *share, sending)
    return [text, goal("at most 1 %", 100 * median(values(rounds, "share")), most=1)]


def memory(cases: Cases) -> list[str]:
    imports, trained = cases["memory"]["imports alone"], cases["memory"]["training"]
    rows = [
        ["imports alone", *spread(values(imports, "peak_bytes"), scale=2**-20)],
        ["the data: images, labels and indices of all splits", *spread(values(trained, "data_bytes"), ".1f", 2**-20)],
        ["the model: weights, gradients, Adam's moments", *spread(values(trained, "model_bytes"), ".1f", 2**-20)],
        ["training, the most", *spread(values(trained, "peak_bytes"), scale=2**-20)],
    ]
    text = "Resident memory of a process that trains the vae on 20,000 images."
    return [text, table(["what", "MiB", "least to most"], rows)]


def scaling(cases: Cases) -> list[str]:
    draw(cases, FIGURE)
    return [
        "![Speed and memory as sizes grow](../docs/scaling.png)",
        "\n".join(f"- {line}" for line in sentences(cases)),
    ]


SECTIONS: dict[str, tuple[str, Callable[[Cases], list[str]]]] = {
    "training": ("Training", training),
    "rows": ("Training of latent_opt", rows),
    "limit": ("Share of the limit", limit),
    "operators": ("Where a training's time goes", operators),
    "compiled": ("Compiled steps", compiled),
    "population": ("Populations", population),
    "evaluation": ("Evaluation", evaluation),
    "start": ("Time to the first loss", start),
    "tracking": ("Tracking", tracking),
    "scaling": ("Scaling", scaling),
    "memory": ("Memory", memory),
}
